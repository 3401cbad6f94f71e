"""`headgate WORDS` in this process, without the seconds that a new process needs for its imports."""

from __future__ import annotations

import functools
import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from typing import NamedTuple
from unittest.mock import patch

from gateway.__main__ import mount, run

mount_once = functools.cache(mount)


class Ended(NamedTuple):
    code: int
    out: str
    err: str


def headgate(*words: object) -> Ended:
    """Its exit status and output."""
    mount_once()
    out, err, code = io.StringIO(), io.StringIO(), 0
    with patch.object(sys, "argv", ["headgate", *map(str, words)]), redirect_stdout(out), redirect_stderr(err):
        try:
            run()
        except SystemExit as ended:
            code = int(ended.code or 0)
    return Ended(code, out.getvalue(), err.getvalue())
