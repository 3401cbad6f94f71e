"""A client of OpenAI's batch API (/v1/files and /v1/batches), which other providers offer too."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, TypeVar

import httpx
import msgspec

from gateway.batch.ask import MAY_PASS
from gateway.errors import UpstreamError
from gateway.providers import Provider
from gateway.upstream.checked import checked_async

T = TypeVar("T")

OVER = frozenset({"completed", "failed", "expired", "cancelled"})
"""Statuses of a batch that has ended."""
TIMEOUT_S = 60.0
MOST_PAGES = 100
"""Most pages of a provider's list of batches that are searched for one batch."""


class EndpointUnavailable(UpstreamError):
    """A fault that may pass: the provider was not reached or failed. It may have received the request all the same."""


class EndpointNotFound(UpstreamError):
    """The provider no longer has the batch or file."""


class Response(msgspec.Struct):
    status_code: int = 0
    body: dict[str, Any] = {}


class Line(msgspec.Struct):
    """One line of a provider's output or error file."""

    custom_id: str = ""
    response: Response | None = None


class Batch(msgspec.Struct):
    """A provider's description of a batch."""

    id: str
    status: str
    metadata: dict[str, Any] | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None


class _File(msgspec.Struct):
    id: str


class _Page(msgspec.Struct):
    data: list[Batch]
    has_more: bool = False


_decode_line = msgspec.json.Decoder(Line, strict=False).decode


class BatchAPI:
    """The batch API of one provider. Every method raises EndpointUnavailable where the answer may still come, and
    UpstreamError where the provider refuses; what reads, EndpointNotFound where the provider has no such object.
    """

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def upload(self, name: str, content: bytes) -> str:
        """Upload a file of requests, and return its id."""
        form = {"file": (name, content, "application/jsonl")}
        return (await self._fetch("POST", "/files", _File, data={"purpose": "batch"}, files=form)).id

    async def create(self, file_id: str, url: str, window_s: float, part_id: str) -> Batch:
        """Create a batch of the file's requests to `url`. The part's id goes into its metadata, where `find` looks."""
        batch = {"input_file_id": file_id, "endpoint": url, "completion_window": _window(window_s),
                 "metadata": {"part": part_id}}  # fmt: skip
        return await self._fetch("POST", "/batches", Batch, json=batch)

    async def find(self, part_id: str) -> Batch | None:
        """The batch that was created for the part; None where there is none."""
        after: dict[str, Any] = {}
        for _ in range(MOST_PAGES):
            page = await self._fetch("GET", "/batches", _Page, params={"limit": 100, **after})
            for batch in page.data:
                if (batch.metadata or {}).get("part") == part_id:
                    return batch
            if not page.has_more or not page.data:
                break
            after = {"after": page.data[-1].id}
        return None

    async def batch(self, id: str) -> Batch:
        """The present state of a batch."""
        return await self._fetch("GET", f"/batches/{id}", Batch)

    async def cancel(self, id: str) -> None:
        """Cancel a batch."""
        await self._request("POST", f"/batches/{id}/cancel")

    async def lines(self, batch: Batch) -> list[Line]:
        """The lines of the batch's output and error files; unreadable lines are left out. Raises EndpointNotFound where
        the output is gone.
        """
        contents, found = [], []
        if batch.output_file_id:
            contents.append(await self._request("GET", f"/files/{batch.output_file_id}/content"))
        if batch.error_file_id:
            with suppress(EndpointNotFound):  # lines in it cost nothing; without an answer they are asked again
                contents.append(await self._request("GET", f"/files/{batch.error_file_id}/content"))
        for line in b"\n".join(contents).splitlines():
            with suppress(msgspec.MsgspecError, UnicodeDecodeError):
                found.append(_decode_line(line))
        return found

    async def _fetch(self, method: str, path: str, kind: type[T], **how: Any) -> T:
        """The provider's answer, decoded."""
        content = await self._request(method, path, **how)
        try:
            return msgspec.json.decode(content, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise EndpointUnavailable("bad_response", f"{method} {path}: {error}") from None

    async def _request(self, method: str, path: str, **how: Any) -> bytes:
        try:
            response = await self._http.request(method, path, **how)
        except httpx.HTTPError as error:
            raise EndpointUnavailable("connect", f"{method} {path}: {error or type(error).__name__}") from None
        status = response.status_code
        if status < 300:
            return response.content
        message = f"{method} {path}: {status}: {response.text[:300]}"
        if method == "GET" and status in (404, 410):
            raise EndpointNotFound("not_found", message)
        if status in MAY_PASS or status >= 500:
            raise EndpointUnavailable("server_error", message)
        raise UpstreamError("rejected", message)


def client_of(provider: Provider) -> httpx.AsyncClient:
    """A client with the provider's address, credentials and headers."""
    endpoint, config = provider.endpoint, provider.config
    uds = endpoint.uds or None
    origin = "http://localhost" if uds else f"{endpoint.scheme}://{endpoint.authority}"
    headers = {**provider.credentials(), **config.headers}
    transport = httpx.AsyncHTTPTransport(uds=uds, verify=config.verify_tls)
    return httpx.AsyncClient(
        base_url=origin + endpoint.base_path, headers=headers, timeout=TIMEOUT_S, transport=transport,
        event_hooks=checked_async(inner=endpoint.inner),
    )  # fmt: skip


def _window(seconds: float) -> str:
    """A completion window in OpenAI's notation, in whole hours."""
    return f"{max(1, round(seconds / 3600))}h"
