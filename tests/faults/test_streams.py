"""Every fault of an upstream, on every surface, over real sockets: one defined ending, exact costs, nothing left."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.cases import STREAMED, WHOLE, Fault, cases_of
from tests.faults.checks import check
from tests.faults.stage import run_cases


@pytest.mark.parametrize("fault", STREAMED, ids=lambda fault: fault.name)
async def test_a_fault_in_a_stream(tmp_path: Path, fault: Fault) -> None:
    """A stream ends complete, with an error before its headers, or with one error event and no terminal event."""
    for result in await run_cases(tmp_path, list(cases_of(fault, stream=True))):
        check(result)


@pytest.mark.parametrize("fault", WHOLE, ids=lambda fault: fault.name)
async def test_a_fault_in_a_whole_answer(tmp_path: Path, fault: Fault) -> None:
    """Without streaming the client gets the answer, another model's, or one error in its API's form."""
    for result in await run_cases(tmp_path, list(cases_of(fault, stream=False))):
        check(result)
