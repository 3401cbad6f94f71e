"""Requests from the client's dialect into the upstream's, by way of chat's."""

from __future__ import annotations

from gateway.wire.body import Raw


def translate_request(raw: Raw, src: str, dst: str) -> Raw:
    """The request in `dst`; the same object when nothing is to be done. CallerError names what can't be put over."""
    if src == dst:
        return raw
    raise ValueError(f"{src} can't be translated to {dst}")
