"""Quality floors with a certificate: thresholds are chosen by learn-then-test, and refused where the data can't support
them.

A family of rules is ordered beforehand from safest to cheapest. Each is tested against "its quality is below the
floor"; testing stops at the first that can't be rejected, so the whole search spends one error budget (fixed-sequence
testing; Angelopoulos et al. 2021, Learn then Test). A certificate speaks of traffic like its calibration rows only;
`cascade.drift` watches whether traffic still is.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log, log1p

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
LEAST_ROWS = 50
RISKS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
"""Shares of wrong answers that a cascade learns to stay below by abstaining."""
MOST_STAKED = 0.75
"""Of what a gambler may lose in one row."""
ASSUMPTION = "requests are exchangeable with the calibration rows"


@dataclass(frozen=True, slots=True)
class Certificate:
    """States "at least `floor` of the reference's quality with this confidence", and what that rests on."""

    floor: float
    confidence: float
    reference: str
    rule: int
    """Index in the family of the cheapest rule that passed."""
    p_value: float
    quality_share: float
    """Quality of the rule relative to the reference on the calibration rows."""
    cost_usd: float
    """Mean cost of the rule on the calibration rows."""
    reference_cost_usd: float
    rows: int
    issued: str
    """Date of issue, as the caller gives it."""
    data_checksum: str = ""
    horizon: int | None = None
    """None: the floor holds in the long run. Else for the realised mean of this many requests."""
    assumption: str = ASSUMPTION


@dataclass(frozen=True, slots=True)
class Refusal:
    """The data can't support the floor, and why."""

    reason: str
    rows: int
    rows_needed: int | None = None
    """About how many calibration rows would be enough; None where no number would, by these rows."""


@dataclass(frozen=True, slots=True)
class Family:
    """k rules on n calibration rows, safest first: scores and costs of each, (k, n), and those of the reference, (n,).
    """

    scores: Matrix
    costs_usd: Matrix
    reference: Matrix
    reference_costs_usd: Matrix
    reference_model: str

    def rows(self, kept: NDArray[np.intp]) -> Family:
        return Family(
            self.scores[:, kept],
            self.costs_usd[:, kept],
            self.reference[kept],
            self.reference_costs_usd[kept],
            self.reference_model,
        )


def certify(
    family: Family,
    floor: float,
    confidence: float = 0.95,
    *,
    horizon: int | None = None,
    issued: str = "",
    data_checksum: str = "",
    mixed: bool = True,
) -> Certificate | Refusal:
    """The cheapest rule whose quality is at least `floor` of the reference's, at that confidence.

    `mixed` False: rows are in the order of time, and the answer may be asked for again after each of them.
    ValueError for a floor outside (0, 1] or a confidence outside (0, 1).
    """
    if not 0.0 < floor <= 1.0 or not 0.0 < confidence < 1.0:
        raise ValueError(f"floor {floor} must be in (0, 1] and confidence {confidence} in (0, 1)")
    n = len(family.reference)
    if n < LEAST_ROWS:
        return Refusal(f"{n} calibration rows; no floor is certified from fewer than {LEAST_ROWS}", n, LEAST_ROWS)
    slack = family.scores - floor * family.reference
    found, p_found = -1, 1.0
    for k in range(len(slack)):
        p = betting_p(slack[k], floor, mixed=mixed) if horizon is None else normal_p(slack[k], horizon)
        if p > 1.0 - confidence:
            break
        found, p_found = k, p
    if found < 0:
        return _refused(slack[0], floor, confidence)
    return Certificate(
        floor=floor,
        confidence=confidence,
        reference=family.reference_model,
        rule=found,
        p_value=p_found,
        quality_share=float(family.scores[found].mean() / max(family.reference.mean(), 1e-12)),
        cost_usd=float(family.costs_usd[found].mean()),
        reference_cost_usd=float(family.reference_costs_usd.mean()),
        rows=n,
        issued=issued,
        data_checksum=data_checksum,
        horizon=horizon,
    )


def _refused(slack: Matrix, floor: float, confidence: float) -> Refusal:
    needed = rows_for(slack, floor, confidence)
    if needed is None:
        return Refusal(f"even the safest rule is below {floor:.0%} of the reference on these rows", len(slack))
    return Refusal("too few rows to tell the safest rule from the floor", len(slack), max(needed, len(slack) + 1))


def rows_for(slack: Matrix, floor: float, confidence: float) -> int | None:
    """About how many rows like these let `betting_p` prove, in half of all samples, that their mean is above 0; None
    where no number would, by these rows. Twice what a gambler who knows mean and variance needs, because the stakes
    have to be learnt, and never fewer than the largest stakes need.
    """
    mean = float(slack.mean())
    if mean <= 1e-4 * float(np.ptp(slack)):
        return None
    evidence = log(1.0 / (1.0 - confidence))
    return ceil(evidence * max(4.0 * float(slack.var()) / mean**2, 1.0 / log1p(MOST_STAKED * mean / floor)))


def betting_p(slack: Matrix, floor: float, *, mixed: bool = True) -> float:
    """P-value of "the mean slack is 0 or less" for slack in [-floor, 1], valid at any sample size.

    `mixed`: in an order of our own; without, in the order given, so that the value only falls as rows are added.
    Wealth of a gambler who bets on the mean being positive (Waudby-Smith & Ramdas 2024, predictable plug-in
    stakes); by Ville's inequality it exceeds 1/p with probability p at most.
    """
    n, width = len(slack), 1.0 + floor
    x, null = (np.asarray(slack) + floor) / width, floor / width
    if mixed:
        x = x[np.random.default_rng(0).permutation(n)]
    count = np.arange(1, n + 1)
    mean = (0.5 + np.cumsum(x)) / (count + 1.0)
    variance = (0.25 + np.cumsum((x - mean) ** 2)) / (count + 1.0)
    before_mean, before_variance = np.r_[0.5, mean[:-1]], np.r_[0.25, variance[:-1]]
    edge = np.maximum(before_mean - null, 0.0)
    stake = np.minimum(edge / (before_variance + edge**2), MOST_STAKED / null)
    wealth = np.cumsum(np.log1p(stake * (x - null)))
    return float(np.exp(-max(0.0, float(wealth.max()))))


def normal_p(slack: Matrix, horizon: int) -> float:
    """P-value of "the mean slack of the next `horizon` requests is below 0", by the normal approximation."""
    from math import erfc, sqrt

    n = len(slack)
    spread_of_mean = float(slack.std(ddof=1)) * sqrt(1.0 / n + 1.0 / horizon)
    if spread_of_mean == 0.0:
        return 0.0 if slack.mean() >= 0 else 1.0
    return 0.5 * erfc(float(slack.mean()) / spread_of_mean / sqrt(2.0))


def abstention(p: Matrix, right: Matrix, risk: float, confidence: float = 0.95) -> float | Refusal:
    """Least P(correct) at which answers may be given so that at most `risk` of those given are wrong.

    Thresholds are tested from the most cautious on, each by the betting test on the answers it lets through.
    """
    for_rows = np.isfinite(p) & np.isfinite(right)
    p, right = p[for_rows], right[for_rows]
    # Fewer answers would hardly pass with one of them wrong, and would end the search before it began.
    fewest = max(LEAST_ROWS, ceil(3.0 * log(1.0 / (1.0 - confidence)) / max(risk, 1e-3)))
    found: float | None = None
    for threshold in np.unique(np.quantile(p, np.linspace(0.95, 0.0, 39)))[::-1] if len(p) else []:
        given = p >= threshold
        if given.sum() < fewest:
            continue
        if betting_p(right[given] - (1.0 - risk), 1.0 - risk) > 1.0 - confidence:
            break
        found = float(threshold)
    return Refusal(f"no threshold keeps the risk at {risk:.0%}", len(p)) if found is None else found
