"""The Anthropic Messages API. The client's version and beta headers are forwarded unchanged."""

from __future__ import annotations

from typing import ClassVar

from gateway.providers.provider import Provider

PATHS = {
    "messages": "/messages",
    "count_tokens": "/messages/count_tokens",
}
_DEFAULTS = {b"anthropic-version": b"2023-06-01"}


class AnthropicProvider(Provider):
    """`base_url` may end in `/v1` or not; both are common."""

    dialects = frozenset(PATHS)
    main_dialect: ClassVar[str] = "messages"
    default_base_url: ClassVar[str] = "https://api.anthropic.com"
    forwarded: ClassVar[tuple[bytes, ...]] = (
        *Provider.forwarded,
        b"anthropic-version",
        b"anthropic-beta",
    )

    def path(self, upstream_name: str, dialect: str) -> str:
        version = "" if self.endpoint.base_path.endswith("/v1") else "/v1"
        return version + PATHS[dialect]

    def credentials(self) -> dict[str, str]:
        return {"x-api-key": str(self.config.api_key)} if self.config.api_key else {}

    def defaults(self) -> dict[bytes, bytes]:
        return _DEFAULTS
