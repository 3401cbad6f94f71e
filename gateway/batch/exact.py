"""The best assignment there is, by HiGHS branch and bound: for small jobs, and what the fast way is measured by.

Work is bounded in nodes of the search tree, never in seconds: the same job ends in the same assignment on any machine,
however busy.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gateway.batch.program import NEVER, Program

NODES = 1_000
"""Jobs worth the exact way end at the first few; where a thousand don't do, the fast way's answer and bound stand."""
_ENDED = (0, 2)
"""HiGHS's optimal and infeasible, as scipy numbers them."""


class Searched(NamedTuple):
    """What branch and bound found."""

    arm: NDArray[np.int16] | None
    """The best assignment seen; None: none was, which means that there is none only where the search `ended`."""
    bound: float
    """No assignment is worth more; infinite where nothing is known."""
    ended: bool
    """Whether the question is settled, to the gap asked: an unfinished search knows nothing of what it did not see."""


def exact(program: Program, *, nodes: int = NODES, gap: float = 1e-6) -> Searched:
    """Search until the best is known to a relative `gap`, through that many nodes at most."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    rows, arms = np.nonzero(program.worth > NEVER / 2)
    cells = np.arange(len(rows))
    once = csr_array((np.ones(len(rows)), (rows, cells)), shape=(len(program), len(rows)))
    uses = program.use_of(rows, arms).T
    found = milp(
        -program.worth[rows, arms].astype(np.float64),
        constraints=[LinearConstraint(once, 1, 1), LinearConstraint(uses, -np.inf, 1.0)],
        bounds=Bounds(0, 1),
        integrality=np.ones(len(rows)),
        options={"node_limit": nodes, "mip_rel_gap": gap},
    )
    ended, dual = found.status in _ENDED, found.mip_dual_bound
    bound = np.inf if dual is None else -float(dual)
    if found.x is None:
        return Searched(None, bound, ended)
    arm = np.full(len(program), -1, np.int16)
    taken = found.x > 0.5
    arm[rows[taken]] = arms[taken]
    return Searched(arm, bound, ended)
