"""The base class of providers: it turns a model and a dialect into a request head, computed once and kept.

Per request only the content length and the headers that may be forwarded are added. Those are a list of allowed
headers, so the client's own credential is never among them. CR, LF and NUL are refused in every value from outside.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from gateway.config.types import ModelConfig, ProviderConfig
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
MIN_SECRET_CHARS = 8
"""Shortest credential, in characters, that is hidden in error messages; a shorter value may be an ordinary word."""
OPENAI = "api.openai.com"
UNTRANSLATABLE = frozenset({"embeddings", "count_tokens", *PASSED})
"""Dialects that can't be translated into another API's."""
_INSTEAD = {
    COMPACT: ": name a model whose provider serves the Responses API, or ask this one for a summary by /v1/responses",
}


class Provider(ABC):
    """Subclasses define the paths, the credentials and the headers that are forwarded."""

    dialects: frozenset[str] = frozenset()
    main_dialect: ClassVar[str] = ""
    """The dialect that requests of any surface outside `dialects` are translated into."""
    may_serve_responses: ClassVar[bool] = False
    default_base_url: ClassVar[str] = ""
    forwarded: ClassVar[tuple[bytes, ...]] = (b"traceparent", b"tracestate")
    """Client headers that are forwarded, in lower case."""

    def __init__(self, config: ProviderConfig, *, base_url: str = "", pool: type[Pool] = Pool) -> None:
        self.config = config
        self.name = config.name
        self.engine = PROFILES.get(config.engine)
        """The peculiarities of its inference server; None: none are known."""
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

    # ---- defined by each kind of API

    @abstractmethod
    def path(self, upstream_name: str, dialect: str) -> str:
        """The path of a request in one of `dialects`, to be appended to the base URL's."""

    @abstractmethod
    def credentials(self) -> dict[str, str]:
        """The headers that authenticate the gateway; none where no key is configured."""

    def defaults(self) -> dict[bytes, bytes]:
        """Headers to send where the client doesn't send them itself."""
        return {}

    # ---- used by the request path

    def dialect_for(self, surface: str) -> str:
        """The dialect that answers a client of `surface`: the same one where the provider has it. Raises CallerError
        where it can't be translated.
        """
        if surface in self.dialects:
            return surface
        if surface in UNTRANSLATABLE:
            instead = _INSTEAD.get(surface, "")
            raise CallerError(f"the provider {self.name} has no {surface}{instead}", code="unsupported_endpoint")
        return self.main_dialect

    def head(
        self, model: ModelConfig, dialect: str, stream: bool, call_headers: Mapping[bytes, bytes]
    ) -> bytes:
        """The head for `pool.send`; `call_headers` are the client's, with names in lower case. Raises CallerError for a
        header that can't be forwarded.
        """
        name = model.upstream_name or model.name
        head = self._heads.get((name, dialect, stream))
        if head is None:
            head = self._heads[name, dialect, stream] = self._head(name, dialect, stream)
        return head + self._forwarded(call_headers)

    def hide_secrets(self, error: UpstreamError) -> None:
        """Replace the gateway's credentials in an error that this provider sent, in case it repeats them."""
        for secret in (self.config.api_key, *self.config.headers.values()):
            if len(secret) >= MIN_SECRET_CHARS:
                error.message = error.message.replace(secret, "***")
                error.param = error.param and error.param.replace(secret, "***")
                error.code = error.code and error.code.replace(secret, "***")

    async def get(self, path: str, *, timeout_s: float) -> Response:
        """GET `path`, appended to the base path; for probes."""
        return await self._get(self.endpoint.base_path + path, timeout_s)

    async def look(self, path: str, *, timeout_s: float) -> Response:
        """GET a page outside the versioned API, such as health or metrics."""
        return await self._get(self.endpoint.base_path.removesuffix("/v1") + path, timeout_s)

    async def _get(self, target: str, timeout_s: float) -> Response:
        _check_target(target, self.name)
        head = f"GET {target} HTTP/1.1\r\nhost: {self.endpoint.authority}\r\n".encode("ascii")
        return await self.pool.send(head + self._fixed, b"", timeout_s=timeout_s)

    async def aclose(self) -> None:
        await self.pool.aclose()

    # ---- inside

    def _serves_responses(self) -> bool:
        configured = self.config.responses
        return self.may_serve_responses and (self.endpoint.host == OPENAI if configured is None else configured)

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
                problems.append(f"providers.{self.name}.headers: {name!r} can't be set")
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
        if dialect in PASSED:  # its content type is the client's
            head += "accept: */*\r\n"
        else:
            accept = "text/event-stream" if stream else "application/json"
            head += f"content-type: application/json\r\naccept: {accept}\r\n"
        return head.encode("ascii") + self._fixed

    def _forwarded(self, call_headers: Mapping[bytes, bytes]) -> bytes:
        lines = b""
        for name in self.forwarded:
            value = call_headers.get(name)
            if value is not None:
                if not _VALUE.match(value) or len(value) > MAX_FORWARDED_BYTES:
                    raise CallerError(f"the header {name.decode()} can't be forwarded", code="invalid_header")
                lines += b"%b: %b\r\n" % (name, value)
        for name, value in self.defaults().items():
            if name not in call_headers:
                lines += b"%b: %b\r\n" % (name, value)
        return lines


def _check_target(target: str, provider: str) -> None:
    if not target.startswith("/") or any(not "!" <= char <= "~" for char in target):
        raise ConfigError([f"providers.{provider}: {target!r} is not a valid request path"])
