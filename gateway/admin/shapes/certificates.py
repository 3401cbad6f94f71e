"""Quality floors: what is promised, on what data, and whether it held since."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from gateway.admin.shapes.common import Interval, Refusal, Share, Wanted


class CertificateWanted(Wanted):
    """What to promise."""

    floor: Share = 0.97
    """Share of the reference's quality."""
    confidence: Share = 0.95
    reference: str = ""
    """A model of the route; empty: the dearest, which is what one pays for quality."""
    apply: bool = False
    """Put the certified cost weight into force, and let drift tighten or withdraw it."""
    version: int | None = None
    """With `apply`: the route's `setting_version` as it was read."""


class CertificateView(BaseModel):
    """A promise. `standing` follows the traffic since: `tighten` and `withdrawn`: it no longer speaks of it."""

    id: str
    kind: Literal["knob", "cascade"] = "knob"
    """Of what: a cost weight, certified on randomised traffic; or a certified cascade's threshold, which the gateway
    certifies, tightens and withdraws by itself, on requests that both models answered."""
    route: str
    issued_s: float
    actor: str
    floor: float
    confidence: float
    reference: str
    cost_weight: float | None
    """The knob that is certified; None: a cascade's certificate."""
    accept_at: float | None = None
    """A cascade's: confidence from which the cheaper answer is kept; None: all go to the reference."""
    p_value: float
    quality_share: float
    cost_usd: float
    reference_cost_usd: float
    rows: int
    """Labelled, randomised decisions that it rests on."""
    data_since_s: float
    data_until_s: float
    data_checksum: str
    bound: str
    assumption: str
    enforced: bool
    standing: Literal["valid", "tighten", "withdrawn", "revoked"]
    standing_since_s: float
    coverage: Interval | None
    """Quality since, as a share of the reference's; None: too little was labelled since."""
    coverage_rows: int
    held: bool | None
    """Whether the floor lies below the coverage's value; None: not known yet."""
    note: str = ""
    mean_expected: float | None = None
    """Mean of what the router expected of its choices on the data: drift is told from it."""


class CertificateAnswer(BaseModel):
    """The certificate, or why the data can't support one."""

    certificate: CertificateView | None = None
    refusal: Refusal | None = None
    rows: int = 0
