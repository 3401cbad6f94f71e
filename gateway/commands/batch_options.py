"""The options that `headgate batch plan` and `headgate batch run` share, with their parsers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gateway.batch.duration import seconds_of
from gateway.config.types import MOST_USD


def seconds(text: str) -> float:
    """Parse a length of time such as 12h, 90m, 2d, 45s or 3600 to seconds. Raises BadParameter."""
    try:
        return seconds_of(text)
    except ValueError as fault:
        raise typer.BadParameter(str(fault)) from None


def dollars(text: str) -> float:
    """Parse an amount of US dollars such as 300, 300.50 or $300. Raises BadParameter."""
    try:
        value = float(text.strip().removeprefix("$").replace(",", ""))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not an amount of dollars, such as 300 or 300.50") from None
    if not 0 <= value <= MOST_USD:
        raise typer.BadParameter(f"a budget must be between 0 and {MOST_USD:,.0f} dollars")
    return value


def counts(text: str) -> tuple[int, ...]:
    """Parse numbers of samples such as 2,4. Raises BadParameter."""
    try:
        counts = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        counts = (0,)
    if any(not 2 <= count <= 64 for count in counts):
        raise typer.BadParameter(f"--samples must be numbers from 2 to 64, such as 2,4, not {text!r}")
    return counts


PROMPTS = typer.Argument(help="File of prompts: OpenAI batch JSONL, or JSONL, CSV or Parquet.", dir_okay=False)

Budget = Annotated[
    float | None,
    typer.Option(parser=dollars, metavar="USD", help="Most dollars to spend; default: what the route would spend."),
]
Deadline = Annotated[
    float | None,
    typer.Option(parser=seconds, metavar="TIME", help="Time to finish in, such as 12h or 90m; default: none."),
]
RouteName = Annotated[str, typer.Option(help="Route for the lines that name no model.")]
MinQuality = Annotated[
    float,
    typer.Option("--min-quality", "--floor", min=0.0, max=1.0, help="Least predicted quality of each answer."),
]
Samples = Annotated[str, typer.Option(help="Consider best-of-k sampling with these k, such as 2,4.")]
Cascade = Annotated[
    bool, typer.Option("--cascade", help="Let the route's cascade call a better model where an answer is poor.")
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out lines that can't be answered, and go on.")]
Tenant = Annotated[str, typer.Option(help="Tenant that the job belongs to.")]
Out = Annotated[Path | None, typer.Option(help="File for the answers, .jsonl or .parquet; default: beside the input.")]
