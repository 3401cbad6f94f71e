"""Write a quantized copy of a model folder: `python -m local_models.quantize FROM TO --bits 4`."""

from __future__ import annotations

import argparse
from pathlib import Path

from local_models.quant import quantize_folder


def main() -> None:
    """Quantize and say how much each matrix lost."""
    parser = argparse.ArgumentParser(description="Quantize a model folder, without calibration data.")
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--bits", type=int, choices=(4, 8), default=8)
    args = parser.parse_args()
    errors = quantize_folder(args.source, args.target, args.bits)
    for name, error in errors.items():
        print(f"{error:8.4f}  {name}")
    size = (args.target / "model.safetensors").stat().st_size
    print(f"{len(errors)} matrices, worst relative error {max(errors.values()):.4f}, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
