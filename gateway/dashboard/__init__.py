"""The dashboard: pages rendered on the server from the admin API's functions, without a build step or other hosts."""

from gateway.dashboard.site import mount

__all__ = ["mount"]
