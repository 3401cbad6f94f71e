"""What workers have counted, as they leave it for others; of ended ones it is kept, so that a gateway's counters never
go down when a worker is replaced.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path

import msgspec

from gateway.metrics import METRICS, Labels

log = logging.getLogger("headgate.serve")

GONE = "worker-gone.metrics"
REFUSED = "reload.refused"
"""In the run folder while the last reload of the configuration was refused."""
_STEP_BYTES = 32 * 1024
_LASTING = frozenset(spec.name for spec in METRICS if spec.kind != "gauge")
_decode = msgspec.json.Decoder(dict[str, list[tuple[Labels, list[float]]]]).decode


def snapshot_of(run_dir: Path, number: int) -> Path:
    """Where the worker of this number leaves what it has counted."""
    return run_dir / f"worker-{number}.metrics"


def publish(path: Path, snapshot: bytes) -> None:
    """Leave it for whoever reads `path`. It takes the place of the one before the last, padded to a round size: so the
    disk may be full meanwhile. Raises OSError where it has outgrown that place, and then the last one stays.
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
    """Add what this worker last said to what is left of those before it. One caller at a time."""
    last = snapshot_of(run_dir, number)
    try:
        counted = _decode(last.read_bytes())
    except (OSError, msgspec.MsgspecError):
        return
    kept = run_dir / GONE
    draft = kept.with_suffix(".new")
    try:
        draft.write_bytes(msgspec.json.encode(_added(_kept(kept), counted)))
        draft.replace(kept)
    except OSError as fault:  # a full disk: it is still counted from where it lies
        log.warning("what worker %d has counted stays by itself: %s", number, fault)
        return
    for suffix in (".metrics", ".new", ".last", ".door"):
        last.with_suffix(suffix).unlink(missing_ok=True)


def forget(run_dir: Path) -> None:
    """A new supervisor counts from nothing."""
    for suffix in ("metrics", "new", "last"):
        for path in run_dir.glob(f"worker-*.{suffix}"):
            path.unlink(missing_ok=True)


def _kept(path: Path) -> dict[str, list[tuple[Labels, list[float]]]]:
    try:
        return _decode(path.read_bytes())
    except (FileNotFoundError, msgspec.MsgspecError):
        return {}


def _added(
    kept: dict[str, list[tuple[Labels, list[float]]]], counted: dict[str, list[tuple[Labels, list[float]]]]
) -> dict[str, list[tuple[Labels, list[float]]]]:
    found = {name: dict(series) for name, series in kept.items()}
    for name in _LASTING & counted.keys():
        series = found.setdefault(name, {})
        for labels, values in counted[name]:
            before = series.get(labels)
            series[labels] = values if before is None else [a + b for a, b in zip(before, values, strict=True)]
    return {name: list(series.items()) for name, series in found.items()}
