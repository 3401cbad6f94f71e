"""Ends the processes that a failed test of the command leaves behind."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.gateway.batch.test_kill import started


@pytest.fixture
async def commands_end() -> AsyncIterator[None]:
    """No process outlives its test: its transport would be collected in a later test, after its loop had ended, and
    fail that one.
    """
    yield
    for process in started:
        process._transport.close()  # type: ignore[attr-defined]  # kills it where it still runs
        await process.wait()
    started.clear()
