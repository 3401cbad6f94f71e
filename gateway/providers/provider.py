"""What every provider does: turn a model and a dialect into a request head, computed once and kept.

Per request only the content length and the few headers that may be forwarded are added. The client's
own credential never gets here: what is forwarded is a short list, not everything less something. CR, LF
and NUL are refused wherever a value comes from outside.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from gateway.config import ModelConfig, ProviderConfig
from gateway.errors import CallerError, ConfigError, UpstreamError
from gateway.upstream import Endpoint, Pool, Response
from gateway.upstream.reach import names_inner
from gateway.wire.pass_through import COMPACT, PASSED
from local_models.backends import PROFILES

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*\Z")
_OURS = frozenset(
    {"host", "content-length", "content-type", "transfer-encoding", "connection", "accept-encoding", "accept",
     "upgrade", "te", "trailer", "expect"}
)  # fmt: skip
MAX_FORWARDED_BYTES = 8192
LEAST_SECRET = 8
"""Characters; a shorter value of a header may be any word."""
OPENAI = "api.openai.com"
UNTRANSLATABLE = frozenset({"embeddings", "count_tokens", *PASSED})
"""Dialects that have no counterpart elsewhere."""
_INSTEAD = {
    COMPACT: ": name a model whose provider serves the Responses API, or ask this one for a summary by /v1/responses",
}


class Provider(ABC):
    """Subclasses say which paths exist, what proves who we are and which headers may pass."""

    dialects: frozenset[str] = frozenset()
    main_dialect: ClassVar[str] = ""
    """What requests of a surface that isn't among `dialects` are translated to."""
    may_serve_responses: ClassVar[bool] = False
    default_base_url: ClassVar[str] = ""
    forwarded: ClassVar[tuple[bytes, ...]] = (b"traceparent", b"tracestate")
    """Client headers handed on, lower case."""

    def __init__(self, config: ProviderConfig, *, base_url: str = "", pool: type[Pool] = Pool) -> None:
        self.config = config
        self.name = config.name
        self.engine = PROFILES.get(config.engine)
        """What is peculiar to the server; None: nothing known."""
        self.endpoint = self._endpoint(base_url or self.default_base_url)
        if self._serves_responses():
            self.dialects |= {"responses", COMPACT}
        self._fixed = self._fixed_headers()
        self._heads: dict[tuple[str, str, bool], bytes] = {}
        self.pool = pool(
            self.endpoint,
            max_connections=config.max_connections,
            connect_timeout_s=config.connect_timeout_s,
        )

    # ---- what a kind of API defines

    @abstractmethod
    def path(self, upstream_name: str, dialect: str) -> str:
        """The request target of one of `dialects`."""

    @abstractmethod
    def credentials(self) -> dict[str, str]:
        """The headers that prove who we are; none where there is no key."""

    def defaults(self) -> dict[bytes, bytes]:
        """Forwarded headers that must be there even when the client sends none."""
        return {}

    # ---- the seam

    def dialect_for(self, surface: str) -> str:
        """The dialect to use for a client that speaks `surface`: the same where it exists."""
        if surface in self.dialects:
            return surface
        if surface in UNTRANSLATABLE:
            instead = _INSTEAD.get(surface, "")
            raise CallerError(f"the provider {self.name} has no {surface}{instead}", code="unsupported_endpoint")
        return self.main_dialect

    def head(
        self, model: ModelConfig, dialect: str, stream: bool, call_headers: Mapping[bytes, bytes]
    ) -> bytes:
        """The head to give to `pool.send`; `call_headers` are the client's, names in lower case."""
        name = model.upstream_name or model.name
        head = self._heads.get((name, dialect, stream))
        if head is None:
            head = self._heads[name, dialect, stream] = self._head(name, dialect, stream)
        return head + self._passed(call_headers)

    def hide_secrets(self, error: UpstreamError) -> None:
        """In what this provider said of an error, should it repeat what we prove ourselves with."""
        for secret in (self.config.api_key, *self.config.headers.values()):
            if len(secret) >= LEAST_SECRET:
                error.message = error.message.replace(secret, "***")
                error.param = error.param and error.param.replace(secret, "***")
                error.code = error.code and error.code.replace(secret, "***")

    async def get(self, path: str, *, timeout_s: float) -> Response:
        """For probes: GET `path`, which starts behind the base path."""
        return await self._get(self.endpoint.base_path + path, timeout_s)

    async def look(self, path: str, *, timeout_s: float) -> Response:
        """GET a page that stands beside the API and its version: health, metrics."""
        return await self._get(self.endpoint.base_path.removesuffix("/v1") + path, timeout_s)

    async def _get(self, target: str, timeout_s: float) -> Response:
        _check_target(target, self.name)
        head = f"GET {target} HTTP/1.1\r\nhost: {self.endpoint.authority}\r\n".encode("ascii")
        return await self.pool.send(head + self._fixed, b"", timeout_s=timeout_s)

    async def aclose(self) -> None:
        await self.pool.aclose()

    # ---- inside

    def _serves_responses(self) -> bool:
        told = self.config.responses
        return self.may_serve_responses and (self.endpoint.host == OPENAI if told is None else told)

    def _endpoint(self, base_url: str) -> Endpoint:
        try:
            endpoint = Endpoint.parse(base_url, verify_tls=self.config.verify_tls)
        except ValueError as error:
            raise ConfigError([f"providers.{self.config.name}.base_url: {error}"]) from None
        return replace(endpoint, inner=self.config.private_network or bool(endpoint.uds) or names_inner(endpoint.host))

    def _fixed_headers(self) -> bytes:
        problems = []
        lines = []
        for name, value in {**self.credentials(), **self.config.headers}.items():
            if not _TOKEN.match(name) or name.lower() in _OURS:
                problems.append(f"providers.{self.name}.headers: {name!r} is not a header you may set")
            elif not _VALUE.match(value.encode("utf-8")):
                problems.append(f"providers.{self.name}: the value of {name} holds a control character")
            else:
                lines.append(f"{name.lower()}: {value}\r\n".encode())
        if problems:
            raise ConfigError(problems)
        return b"".join([b"accept-encoding: identity\r\nuser-agent: headgate\r\n", *lines])

    def _head(self, upstream_name: str, dialect: str, stream: bool) -> bytes:
        assert dialect in self.dialects, (self.name, dialect)
        target = self.endpoint.base_path + self.path(upstream_name, dialect)
        _check_target(target, self.name)
        head = f"POST {target} HTTP/1.1\r\nhost: {self.endpoint.authority}\r\n"
        if dialect in PASSED:  # the call says what its body is
            head += "accept: */*\r\n"
        else:
            accept = "text/event-stream" if stream else "application/json"
            head += f"content-type: application/json\r\naccept: {accept}\r\n"
        return head.encode("ascii") + self._fixed

    def _passed(self, call_headers: Mapping[bytes, bytes]) -> bytes:
        passed = b""
        for name in self.forwarded:
            value = call_headers.get(name)
            if value is not None:
                if not _VALUE.match(value) or len(value) > MAX_FORWARDED_BYTES:
                    raise CallerError(f"the header {name.decode()} can't be passed on", code="invalid_header")
                passed += b"%b: %b\r\n" % (name, value)
        for name, value in self.defaults().items():
            if name not in call_headers:
                passed += b"%b: %b\r\n" % (name, value)
        return passed


def _check_target(target: str, provider: str) -> None:
    if not target.startswith("/") or any(not "!" <= sign <= "~" for sign in target):
        raise ConfigError([f"providers.{provider}: {target!r} can't be a request path"])
