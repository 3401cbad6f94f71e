"""Files with the metrics of workers, which other processes read. Those of ended workers are added up, so that a
gateway's counters never go down when a worker is replaced.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path

import msgspec

from gateway.metrics import METRICS, Labels, read_snapshot

log = logging.getLogger("headgate.serve")

GONE = "worker-gone.metrics"
REFUSED = "reload.refused"
"""This file is in the run folder while the last reload of the configuration was refused."""
_STEP_BYTES = 32 * 1024
_LASTING = frozenset(spec.name for spec in METRICS if spec.kind != "gauge")


def snapshot_of(run_dir: Path, number: int) -> Path:
    """The file with the metrics of the worker of this number."""
    return run_dir / f"worker-{number}.metrics"


def publish(path: Path, snapshot: bytes) -> None:
    """Replace the snapshot at `path`. The new one overwrites the file of the last but one and is padded to a round
    size, so it needs no space on a full disk. Raises OSError, and the last snapshot stays, where it has outgrown that
    file and the disk is full.
    """
    draft, last = path.with_suffix(".new"), path.with_suffix(".last")
    size = -(-len(snapshot) // _STEP_BYTES) * _STEP_BYTES
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644), "wb") as file:
        file.write(snapshot.ljust(size))
        file.truncate()
    with suppress(OSError):  # a file system without hard links
        last.unlink(missing_ok=True)
        last.hardlink_to(path)
    draft.replace(path)
    with suppress(FileNotFoundError):
        last.replace(draft)


def retire(run_dir: Path, number: int) -> None:
    """Add the last snapshot of an ended worker to the sum of those that ended before. Only one process may call this at
    a time.
    """
    last = snapshot_of(run_dir, number)
    try:
        counted = read_snapshot(last.read_bytes())
    except (OSError, msgspec.MsgspecError):
        return
    kept = run_dir / GONE
    draft = kept.with_suffix(".new")
    try:
        draft.write_bytes(msgspec.json.encode(_added(_kept(kept), counted)))
        draft.replace(kept)
    except OSError as fault:  # the disk is full: the worker's own file still counts
        log.warning("the counters of ended worker %d stay in a file of their own: %s", number, fault)
        return
    for suffix in (".metrics", ".new", ".last", ".door"):
        last.with_suffix(suffix).unlink(missing_ok=True)


def forget(run_dir: Path) -> None:
    """Delete the files of all workers: a new supervisor counts from zero."""
    for suffix in ("metrics", "new", "last"):
        for path in run_dir.glob(f"worker-*.{suffix}"):
            path.unlink(missing_ok=True)


def _kept(path: Path) -> dict[str, list[tuple[Labels, list[float]]]]:
    try:
        return read_snapshot(path.read_bytes())
    except (FileNotFoundError, msgspec.MsgspecError):
        return {}


def _added(
    kept: dict[str, list[tuple[Labels, list[float]]]], counted: dict[str, list[tuple[Labels, list[float]]]]
) -> dict[str, list[tuple[Labels, list[float]]]]:
    totals = {name: dict(series) for name, series in kept.items()}
    for name in _LASTING & counted.keys():
        series = totals.setdefault(name, {})
        for labels, values in counted[name]:
            before = series.get(labels)
            series[labels] = values if before is None else [a + b for a, b in zip(before, values, strict=True)]
    return {name: list(series.items()) for name, series in totals.items()}
