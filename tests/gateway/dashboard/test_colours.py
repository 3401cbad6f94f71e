"""The contrast of the style's colours, light and dark (WCAG 2.2, 1.4.3 and 1.4.11)."""

from __future__ import annotations

import re

import pytest

from gateway.dashboard.page import STATIC

COLOUR = re.compile(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)")
COLOURS = {name: pair for name, *pair in COLOUR.findall((STATIC / "style.css").read_text())}
TEXT = [
    *((one, ground) for one in ("ink", "soft", "accent") for ground in ("paper", "sheet", "sunk", "wash")),
    *((one, f"{one}-wash") for one in ("good", "warn", "bad")),
    *(("ink", f"{one}-wash") for one in ("good", "warn", "bad")), ("on-accent", "accent"), ("bad", "sheet"),
]  # fmt: skip
SHAPES = [("edge", "sheet"), ("edge", "paper"), *((f"s{i}", "sheet") for i in range(6))]


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_and_shapes_have_enough_contrast(theme: int) -> None:
    """Text has at least 4.5 to 1 on every background, lines of charts and edges of fields 3 to 1."""
    weak = [
        (one, ground)
        for least, pairs in ((4.5, TEXT), (3.0, SHAPES))
        for one, ground in pairs
        if contrast(COLOURS[one][theme], COLOURS[ground][theme]) < least
    ]
    assert weak == []
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)
