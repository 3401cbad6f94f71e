"""Azure OpenAI: OpenAI's bodies, with other paths and another authentication header.

The classic API names the deployment in the path; the newer one, whose base URL ends in /openai/v1, takes it from the
body. The base URL decides which of them is used.
"""

from __future__ import annotations

from typing import ClassVar
from urllib.parse import quote

from gateway.providers.openai import PATHS, RESPONSES
from gateway.providers.provider import Provider

DEFAULT_API_VERSION = "2024-10-21"
RESPONSES_API_VERSION = "2025-03-01-preview"
"""The first version with the Responses API."""


class AzureProvider(Provider):
    """`base_url` is `https://NAME.openai.azure.com`, or the same with `/openai/v1`."""

    dialects = frozenset(PATHS)
    main_dialect: ClassVar[str] = "chat"
    may_serve_responses: ClassVar[bool] = True

    def path(self, upstream_name: str, dialect: str) -> str:
        if self.endpoint.base_path.endswith("/openai/v1"):
            version = quote(self.config.api_version, safe="")
            return (PATHS.get(dialect) or RESPONSES[dialect]) + (f"?api-version={version}" if version else "")
        if dialect in RESPONSES:  # the Responses API takes the deployment from the body here as well
            version = quote(self.config.api_version or RESPONSES_API_VERSION, safe="")
            return f"/openai{RESPONSES[dialect]}?api-version={version}"
        version = quote(self.config.api_version or DEFAULT_API_VERSION, safe="")
        return f"/openai/deployments/{quote(upstream_name, safe='')}{PATHS[dialect]}?api-version={version}"

    def credentials(self) -> dict[str, str]:
        return {"api-key": str(self.config.api_key)} if self.config.api_key else {}
