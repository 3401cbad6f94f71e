"""Where the command `headgate` begins: before its imports, which take a third of a second."""

from __future__ import annotations

import signal


def main() -> None:
    """Until the command can say how it ends, Ctrl-C simply ends it: there is nothing to put in order yet."""
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
