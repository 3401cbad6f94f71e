"""Where the command `headgate` begins: before its imports, which take a third of a second."""

from __future__ import annotations

import os
import signal
import sys


def speak_utf8() -> None:
    """Begin again in UTF-8 where the locale is another one: paths and texts that we are given need not fit into it."""
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"  # for the processes that this one starts, too
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606


def main() -> None:
    """Until the command can say how it ends, Ctrl-C simply ends it: there is nothing to put in order yet."""
    speak_utf8()
    listens = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if listens:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from gateway import __main__ as command

    command.mount()
    if listens:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    command.run()


if __name__ == "__main__":
    main()
