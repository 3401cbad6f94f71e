"""An upstream for surfaces that are passed through: sound, pictures, moderation, reranking. Each path has its answer.

    async with studio(tmp_path, {"/audio/speech": Said(b"...", "audio/mpeg")}, models=[...]) as home:
        await home.sdk("openai").do("audio.speech.create", ...)
        home.asked[-1].body
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from gateway.journal.record import DecisionRecord
from tests.conformance.clients import Sdk
from tests.live import Live, live


@dataclass(frozen=True)
class Said:
    """An answer. Several parts are sent as separate chunks."""

    body: bytes | Sequence[bytes] | Mapping[str, Any]
    kind: str = "application/json"
    status: int = 200
    cut: bool = False
    """The connection breaks before the end."""
    gap_s: float = 0.0


@dataclass(frozen=True)
class Asked:
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)


@dataclass
class Studio:
    answers: Mapping[str, Said | Sequence[Said]]
    """The answers by path, without the API's version and a deployment; each call takes the next."""
    asked: list[Asked] = field(default_factory=list)
    gateway: Live | None = None
    _sdks: list[Sdk] = field(default_factory=list)

    @property
    def live(self) -> Live:
        assert self.gateway is not None
        return self.gateway

    def sdk(self, kind: str, mode: str = "async", **options: Any) -> Sdk:
        self._sdks.append(Sdk(kind, mode, self.live.url, **options))
        return self._sdks[-1]

    async def decision(self, headers: Mapping[str, str]) -> DecisionRecord:
        await self.live.rest()
        return await self.live.decision(headers["x-headgate-decision-id"])

    async def close(self) -> None:
        for sdk in self._sdks:
            await sdk.close()

    def _said(self, path: str) -> Said:
        said = next((said for end, said in self.answers.items() if path.partition("?")[0].endswith(end)), None)
        if said is None:
            return Said({"error": {"message": f"no {path} here"}}, status=404)
        if isinstance(said, Said):
            return said
        before = sum(one.path == path for one in self.asked)
        return said[min(before, len(said)) - 1]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                line, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
                headers = {name.lower(): value for name, _, value in (one.partition(": ") for one in lines)}
                body = await reader.readexactly(int(headers["content-length"]))
                self.asked.append(Asked(line.split()[1], headers, body))
                await self._answer(writer, self._said(line.split()[1]))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, said: Said) -> None:
        head = f"HTTP/1.1 {said.status} X\r\ncontent-type: {said.kind}\r\n"
        if isinstance(said.body, bytes | Mapping):
            body = said.body if isinstance(said.body, bytes) else msgspec.json.encode(said.body)
            writer.write(f"{head}content-length: {len(body) + said.cut}\r\n\r\n".encode() + body)
        else:
            writer.write(f"{head}transfer-encoding: chunked\r\n\r\n".encode())
            for part in said.body:
                writer.write(b"%x\r\n%b\r\n" % (len(part), part))
                await writer.drain()
                await asyncio.sleep(said.gap_s)
            writer.write(b"" if said.cut else b"0\r\n\r\n")
        await writer.drain()
        if said.cut:
            raise ConnectionError


@asynccontextmanager
async def studio(
    folder: Path, answers: Mapping[str, Said | Sequence[Said]], models: Sequence[Mapping[str, Any]],
    kind: str = "openai", provider: Mapping[str, Any] | None = None, **extra: Any,
) -> AsyncIterator[Studio]:
    """Whatever a test does: afterwards nothing is held, in flight or connected, and no budget is overrun.
    `provider`: more settings of it; of its base URL, the `path`.
    """
    home = Studio(answers)
    server = await asyncio.start_server(home.serve, "127.0.0.1", 0)
    own = {"name": "studio", "kind": kind, "api_key": "${UP_KEY}", **(provider or {})}
    path = own.pop("path", "/v1" if kind == "openai" else "")
    own["base_url"] = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}{path}"
    providers = [own, *extra.pop("providers", ())]
    try:
        async with live(folder, models=[{"provider": "studio", **one} for one in models], providers=providers,
                        **extra) as home.gateway:  # fmt: skip
            try:
                yield home
            finally:
                await home.close()
            await home.gateway.rest()
            assert home.gateway.services.ledger.overrun_nanousd == 0
    finally:
        server.close()
