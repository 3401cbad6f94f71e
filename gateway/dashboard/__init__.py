"""The dashboard: pages over the admin API's functions, made on the server, with no build step and no foreign host."""

from gateway.dashboard.site import mount

__all__ = ["mount"]
