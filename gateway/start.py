"""Entry point of the command `headgate`, which runs before the command's imports take a third of a second."""

from __future__ import annotations

import os
import signal
import sys


def speak_utf8() -> None:
    """Start the process again in Python's UTF-8 mode where the locale has another encoding, which could not represent
    every path and text.
    """
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"  # child processes inherit it
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606


def main() -> None:
    """Run the command. During its imports Ctrl-C ends the process without a traceback; there is nothing to clean up."""
    speak_utf8()
    has_default_handler = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if has_default_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from gateway import __main__ as command

    command.mount()
    if has_default_handler:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    command.run()


if __name__ == "__main__":
    main()
