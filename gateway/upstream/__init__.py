"""The wire to the providers: one HTTP/1.1 keep-alive pool per endpoint, on `asyncio.Protocol` and llhttp.

Why not a client library: the ones we measured cost 5 to 70 times more CPU per request, and some scan
every connection for each request. This package speaks the small part of HTTP a gateway needs. It refuses
the rest: no redirects, no cookies, no proxies, no compression, no HTTP/2, no interpretation of a status.
"""

from gateway.upstream.connection import Response
from gateway.upstream.endpoint import Endpoint
from gateway.upstream.pool import Pool, PoolStats

__all__ = ["Endpoint", "Pool", "PoolStats", "Response"]
