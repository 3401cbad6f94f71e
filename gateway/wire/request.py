"""The functions for requests that other packages import: read a body, describe it, translate it."""

from __future__ import annotations

from gateway.wire.body import Raw, decode, encode, to_raw
from gateway.wire.describe import BILLED, Described, describe, estimate_tokens
from gateway.wire.responses import responses_input
from gateway.wire.to_messages import signed
from gateway.wire.translate import ask_usage, translate_request

__all__ = [
    "BILLED",
    "Described",
    "Raw",
    "ask_usage",
    "decode",
    "describe",
    "encode",
    "estimate_tokens",
    "responses_input",
    "signed",
    "to_raw",
    "translate_request",
]
