"""A house of every provider kind for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.conformance.house import PROVIDERS, House, house


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[House]:
    """Every kind of provider, every usual script."""
    async with house(tmp_path, kinds=tuple(PROVIDERS)) as built:
        yield built
