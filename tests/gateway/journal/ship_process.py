"""A shipper that can be killed; its arguments are FOLDER and URL."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from gateway.journal.schema import open_engine
from gateway.journal.ship import Shipper


def main(folder: str, url: str) -> None:
    """Prints a line when it is about to begin, so that the killer can time its signal."""
    shipper = Shipper(Path(folder), open_engine(url), read_bytes=20_000)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    shipper.run(threading.Event(), pause_s=0.001)


if __name__ == "__main__":
    main(*sys.argv[1:])
