"""The best assignment there is, by HiGHS branch and bound: for small jobs, and what the fast way is measured by."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gateway.batch.program import NEVER, Program


def exact(program: Program, *, time_limit_s: float = 20.0, gap: float = 1e-6) -> tuple[NDArray[np.int16], float] | None:
    """Arms and an upper bound on worth; None where no assignment keeps the limits or none was found in time."""
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
        options={"time_limit": time_limit_s, "mip_rel_gap": gap},
    )
    if found.x is None:
        return None
    arm = np.full(len(program), -1, np.int16)
    taken = found.x > 0.5
    arm[rows[taken]] = arms[taken]
    return arm, -float(found.mip_dual_bound)


def relaxed(program: Program) -> float:
    """The optimum when prompts may be split between arms: the bound that the fast way approaches."""
    from scipy.optimize import linprog
    from scipy.sparse import csr_array

    rows, arms = np.nonzero(program.worth > NEVER / 2)
    once = csr_array((np.ones(len(rows)), (rows, np.arange(len(rows)))), shape=(len(program), len(rows)))
    found = linprog(
        -program.worth[rows, arms].astype(np.float64), A_eq=once, b_eq=np.ones(len(program)),
        A_ub=program.use_of(rows, arms).T, b_ub=np.ones(len(program.names)), bounds=(0, 1), method="highs",
    )  # fmt: skip
    return -float(found.fun) if found.success else -np.inf
