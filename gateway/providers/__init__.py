"""Providers: the request heads that an upstream's API wants, and the connection pool that requests go through.

There is one class per kind of API. A provider knows paths and credentials, and nothing of models' prices, retries,
breakers or the content of a body.
"""

from __future__ import annotations

from gateway.config.types import ProviderConfig, Server
from gateway.providers.anthropic import AnthropicProvider
from gateway.providers.azure import AzureProvider
from gateway.providers.managed import ManagedPool, managed_base_url
from gateway.providers.openai import OpenAIProvider
from gateway.providers.provider import Provider

__all__ = ["Provider", "open_provider"]

_KINDS: dict[str, type[Provider]] = {
    "openai": OpenAIProvider,
    "azure": AzureProvider,
    "anthropic": AnthropicProvider,
    "local": OpenAIProvider,
}


def open_provider(config: ProviderConfig, server: Server) -> Provider:
    """The provider of one `[[providers]]` entry, with its own pool. Raises ConfigError where the entry is unusable.

    A `local` or `scripted` provider without a base URL is a child process on a socket in `server.run_dir`.
    """
    if config.kind == "scripted":
        dialect = config.options.get("dialect", "openai")
        kind: type[Provider] = AnthropicProvider if dialect == "anthropic" else OpenAIProvider
    else:
        kind = _KINDS[config.kind]
    if config.kind in ("local", "scripted") and not config.base_url:
        return kind(config, base_url=managed_base_url(config, server), pool=ManagedPool)
    return kind(config, base_url=config.base_url)
