"""A process that appends as fast as it can and prints which records were acknowledged; its arguments are FOLDER and
NAME.
"""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path

from gateway.journal.spool import Spool
from tests.gateway.journal.records import decision


def main(folder: str, name: str) -> None:
    """Writes each id to stdout after `append` returned, unbuffered, until killed."""
    spool = Spool(Path(folder), segment_bytes=200_000)
    for number in itertools.count():
        record = decision(number, id=f"{name}_{number}")
        if spool.append(record):
            os.write(1, f"{record.id}\n".encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
