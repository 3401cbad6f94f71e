"""The optimal assignment by HiGHS's branch and bound: for small jobs, and the yardstick of the fast method.

Work is bounded in nodes of the search tree, never in seconds, so that the same job gets the same assignment on any
machine, however busy it is.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gateway.batch.program import NEVER, Program

NODES = 1_000
"""Most nodes of a search. Jobs that are small enough for it end within a few; where a thousand don't suffice, the
result of the fast method stands.
"""
_ENDED = (0, 2)
"""Scipy's numbers for HiGHS's statuses "optimal" and "infeasible"."""


class Searched(NamedTuple):
    """The result of branch and bound."""

    arm: NDArray[np.int16] | None
    """The best assignment found; None where none was found. That there is none at all is only certain where `ended`."""
    bound: float
    """No assignment is worth more; infinite where there is no bound."""
    ended: bool
    """Whether the search ended by itself: with an assignment that is optimal to the gap, or with a proof that there is
    none.
    """


def exact(program: Program, *, nodes: int = NODES, gap: float = 1e-6) -> Searched:
    """Search through at most `nodes` nodes until the optimum is known to a relative `gap`."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    rows, arms = np.nonzero(program.worth > NEVER / 2)
    cells = np.arange(len(rows))
    once = csr_array((np.ones(len(rows)), (rows, cells)), shape=(len(program), len(rows)))
    uses = program.use_of(rows, arms).T
    solution = milp(
        -program.worth[rows, arms].astype(np.float64),
        constraints=[LinearConstraint(once, 1, 1), LinearConstraint(uses, -np.inf, 1.0)],
        bounds=Bounds(0, 1),
        integrality=np.ones(len(rows)),
        options={"node_limit": nodes, "mip_rel_gap": gap},
    )
    ended, dual = solution.status in _ENDED, solution.mip_dual_bound
    bound = np.inf if dual is None else -float(dual)
    if solution.x is None:
        return Searched(None, bound, ended)
    arm = np.full(len(program), -1, np.int16)
    taken = solution.x > 0.5
    arm[rows[taken]] = arms[taken]
    return Searched(arm, bound, ended)
