"""The OpenAI API and the many servers that speak it (vLLM, SGLang, llama.cpp, Ollama, our own)."""

from __future__ import annotations

from typing import ClassVar

from gateway.providers.provider import Provider
from gateway.wire.pass_through import COMPACT, PASSED

PATHS = {
    "chat": "/chat/completions",
    "completions": "/completions",
    "embeddings": "/embeddings",
    **{dialect: path for dialect, path in PASSED.items() if dialect != COMPACT},
}
RESPONSES = {"responses": "/responses", COMPACT: PASSED[COMPACT]}
"""Paths of providers that serve the Responses API."""


class OpenAIProvider(Provider):
    """`base_url` ends with the version: `https://api.openai.com/v1`."""

    dialects = frozenset(PATHS)
    main_dialect: ClassVar[str] = "chat"
    may_serve_responses: ClassVar[bool] = True
    default_base_url: ClassVar[str] = "https://api.openai.com/v1"

    def path(self, upstream_name: str, dialect: str) -> str:
        return PATHS.get(dialect) or RESPONSES[dialect]

    def credentials(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.config.api_key}"} if self.config.api_key else {}
