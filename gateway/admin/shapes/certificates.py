"""Certificates of quality floors."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from gateway.admin.shapes.common import Interval, Refusal, Share, Wanted


class CertificateWanted(Wanted):
    """A quality floor to certify."""

    floor: Share = 0.97
    """Share of the reference's quality."""
    confidence: Share = 0.95
    reference: str = ""
    """A model of the route; empty: the one with the highest mean cost."""
    apply: bool = False
    """Put the certified cost weight into force, and lower it where drift tightens or withdraws the certificate."""
    version: int | None = None
    """With `apply`: the route's `setting_version` as it was read."""


class CertificateView(BaseModel):
    """A certificate of a quality floor. `standing` follows the traffic since: with `tighten` or `withdrawn`, it has
    drifted away from the data of the certificate.
    """

    id: str
    kind: Literal["knob", "cascade"] = "knob"
    """What is certified: a cost weight, on randomised traffic; or a certified cascade's threshold, which the gateway
    certifies, tightens and withdraws by itself, on requests that both models answered."""
    route: str
    issued_s: float
    actor: str
    floor: float
    confidence: float
    reference: str
    cost_weight: float | None
    """The certified cost weight; None for a cascade's certificate."""
    accept_at: float | None = None
    """Of a cascade: least confidence at which the cheaper answer is kept; None: all requests go to the reference."""
    p_value: float
    quality_share: float
    cost_usd: float
    reference_cost_usd: float
    rows: int
    """Number of labelled, randomised decisions that the certificate rests on."""
    data_since_s: float
    data_until_s: float
    data_checksum: str
    bound: str
    assumption: str
    enforced: bool
    standing: Literal["valid", "tighten", "withdrawn", "revoked"]
    standing_since_s: float
    coverage: Interval | None
    """Quality since, as a share of the reference's; None where too few decisions were labelled since."""
    coverage_rows: int
    held: bool | None
    """Whether the coverage's value has reached the floor; None: not known yet."""
    note: str = ""
    mean_expected: float | None = None
    """Mean quality that the router expected of its choices on the certificate's data; drift is measured against it."""


class CertificateAnswer(BaseModel):
    """The certificate, or the reason why the data can't support one."""

    certificate: CertificateView | None = None
    refusal: Refusal | None = None
    rows: int = 0
