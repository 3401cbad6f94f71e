"""The wire to the providers: one HTTP/1.1 keep-alive pool per endpoint, on `asyncio.Protocol` and llhttp.

It replaces a client library because those measured cost 5 to 70 times more CPU per request, and some scan every
connection for each request. This package speaks the small part of HTTP that a gateway needs: no redirects, no cookies,
no proxies, no compression, no HTTP/2, and no interpretation of a status.
"""

from gateway.upstream.connection import Response
from gateway.upstream.endpoint import Endpoint
from gateway.upstream.pool import Pool, PoolStats

__all__ = ["Endpoint", "Pool", "PoolStats", "Response"]
