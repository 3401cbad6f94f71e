"""Who may use the admin API: the master key's holder, or, where no key is set, this machine alone.

Without a key a web page in the operator's browser could reach us through the operator's own machine; so a
foreign Origin, or a Host that isn't a loopback name (DNS rebinding), is refused.
"""

from __future__ import annotations

import hmac
import ipaddress
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from gateway.errors import PolicyError, Unauthorized

_bearer = HTTPBearer(auto_error=False, description="The master key.")


def identify(request: Request, sent: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> str:
    """The actor's name for the audit log. Raises Unauthorized or PolicyError."""
    master_key: str = request.app.state.desk.config.auth.master_key
    if not master_key:
        _only_this_machine(request)
        return "local"
    if sent is None or not hmac.compare_digest(sent.credentials.encode(), master_key.encode()):
        raise Unauthorized("the admin API needs the master key as a bearer token")
    return "master"


def _only_this_machine(request: Request) -> None:
    client = request.client.host if request.client else ""
    if not is_loopback(client):
        raise PolicyError("without a master key the admin API answers this machine only")
    host = request.headers.get("host", "")
    origin = request.headers.get("origin", "")
    if not is_loopback(urlsplit(f"//{host}").hostname or ""):
        raise PolicyError("without a master key the admin API answers to loopback names only")
    if origin and urlsplit(origin).netloc != host:
        raise PolicyError("without a master key the admin API answers no other site's pages")


def is_loopback(host: str) -> bool:
    """An address or name of this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


Actor = Annotated[str, Depends(identify)]
