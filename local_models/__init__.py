"""What we can run here: an engine for small language models, its server, and adapters to the larger engines.

Importing this package imports no torch; only the engine, the server and the trainer do, when they run.
"""

from __future__ import annotations

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"


def shipped_models() -> dict[str, Path]:
    """Name and folder of every model that comes with the package."""
    return _models_in(WEIGHTS)


def quantized_models() -> dict[str, Path]:
    """The same in eight and four bits, as `python -m local_models.quantize` wrote them: `tiny-large-int8` and so on."""
    return _models_in(WEIGHTS / "quantized")


def folder_of(named: str | Path) -> Path:
    """A path, or the folder of a model that comes with the package by its name."""
    known = {**shipped_models(), **quantized_models()}
    return known.get(str(named), Path(named))


def _models_in(parent: Path) -> dict[str, Path]:
    return {folder.name: folder for folder in sorted(parent.iterdir()) if (folder / "config.json").is_file()}
