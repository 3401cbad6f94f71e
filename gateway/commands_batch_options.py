"""The options that `headgate batch plan` and `headgate batch run` share: said, read and bounded in one place."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated

import typer

_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_LENGTH = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([smhd]?)\s*")


def seconds(text: str) -> float:
    """A length of time such as 12h, 90m, 2d, 45s or 3600. BadParameter where it is none."""
    total, rest = 0.0, text.strip().lower()
    while rest:
        found = _LENGTH.match(rest)
        if found is None or not (found[2] or total == 0.0):
            raise typer.BadParameter(f"{text!r} is no length of time; write 12h, 90m, 1h30m, 2d or seconds")
        total += float(found[1]) * _UNITS_S[found[2] or "s"]
        rest = rest[found.end() :]
    if not 0 < total < math.inf:
        raise typer.BadParameter("a deadline must be later than now")
    return total


def dollars(text: str) -> float:
    """An amount such as 300, 300.50 or $300."""
    try:
        value = float(text.strip().removeprefix("$").replace(",", ""))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no amount of dollars") from None
    if not 0 <= value < math.inf:
        raise typer.BadParameter("a budget is zero dollars or more")
    return value


def counts(text: str) -> tuple[int, ...]:
    """Numbers of samples such as 2,4."""
    try:
        counts = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        counts = (0,)
    if any(not 2 <= count <= 64 for count in counts):
        raise typer.BadParameter(f"--samples is a list of numbers from 2 to 64, not {text!r}")
    return counts


PROMPTS = typer.Argument(help="OpenAI batch JSONL, or prompts as JSONL, CSV or Parquet.", dir_okay=False)

Budget = Annotated[
    float | None,
    typer.Option(parser=dollars, metavar="USD", help="Dollars that are never passed; default: as the route spends."),
]
Deadline = Annotated[
    float | None,
    typer.Option(parser=seconds, metavar="TIME", help="Time to be done in, such as 12h or 90m; default: any."),
]
RouteName = Annotated[str, typer.Option(help="Answers lines that name no model.")]
MinQuality = Annotated[
    float,
    typer.Option("--min-quality", "--floor", min=0.0, max=1.0, help="Least predicted quality of every answer."),
]
Samples = Annotated[str, typer.Option(help="Best-of-k to consider for each prompt, such as 2,4.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out lines that can't be answered, and go on.")]
Tenant = Annotated[str, typer.Option(help="Whose job it is.")]
Out = Annotated[Path | None, typer.Option(help="Answers, .jsonl or .parquet; default: beside the input.")]
