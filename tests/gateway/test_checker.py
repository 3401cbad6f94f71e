"""Checks of answers by a command: their results, limits and failures."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from gateway.checker import Checker


def python(code: str, **limits: Any) -> Checker:
    return Checker([sys.executable, "-I", "-c", f"import sys, os\nanswer = sys.stdin.read()\n{code}"], **limits)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("sys.exit(0 if answer == '42' else 1)", True),
        ("sys.exit(0 if answer == '43' else 1)", False),
        ("sys.exit(7)", None),
        ("os.kill(os.getpid(), 9)", None),
        ("x = bytearray(10**10); sys.exit(0)", False),
        ("sys.exit(0 if 'HEADGATE_SECRET' in os.environ else 1)", False),
    ],
)
async def test_a_check_passes_fails_or_says_nothing(
    code: str, said: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit status 0 passes and 1 fails; any other end says nothing. Memory is limited, and the gateway's environment
    isn't passed on.
    """
    monkeypatch.setenv("HEADGATE_SECRET", "x")
    assert await python(code, timeout_s=120.0).check("42") is said


async def test_a_check_that_hangs_is_ended() -> None:
    """A check that hangs says nothing."""
    assert await python("import time; time.sleep(1000)", timeout_s=0.2).check("42") is None


async def test_a_missing_command_says_nothing() -> None:
    """A misconfigured check never rejects an answer."""
    assert await Checker(["/no/such/program"]).check("x") is None


def test_a_check_needs_a_command() -> None:
    """An empty command raises ValueError."""
    with pytest.raises(ValueError, match="command"):
        Checker([])
