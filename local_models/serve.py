"""The server of local models, OpenAI's dialect over HTTP: `python -m local_models.serve --port 9000`.

It runs as a child process of whoever supervises it: when the engine of a model dies the process ends, its
connections break, and the supervisor starts another while the callers fail over. Without `--models` it serves
the models shipped with the package. A request refused, a client gone, a deadline passed: each concerns that
one only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import uvicorn

from local_models import openai_wire as wire
from local_models import shipped_models
from local_models.engine import Engine, EngineOptions
from local_models.errors import EngineDead, LocalModelError, RequestRefused
from local_models.request import Delta, Event, Finished, Request, TokenLogprob, Usage
from local_models.worker import Worker

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

_MOST_BODY_BYTES = 32 * 1024 * 1024
_log = logging.getLogger(__name__)


class Served:
    """One model by its name: its worker and what its folder says of sampling."""

    def __init__(self, name: str, folder: Path, options: EngineOptions) -> None:
        self.name = name
        self.worker = Worker(Engine.load(folder, options))
        self.codec = self.worker.engine.codec
        self.temperature = _default_temperature(folder)
        self.requests = 0
        self.prompt_tokens = 0
        self.output_tokens = 0

    def request(self, wanted: wire.Wanted, prompt: list[int], choice: int) -> Request:
        """The engine's request for one choice; each has its own seed."""
        if not prompt:
            raise RequestRefused("the prompt is empty", param="messages")
        room = self.worker.engine.scheduler.capacity_tokens - len(prompt)
        max_tokens = wanted.max_tokens if wanted.max_tokens is not None else max(1, room)
        sampling = wanted.sampling
        if sampling.seed is not None:
            sampling = replace(sampling, seed=sampling.seed + choice)
        deadline_s = None if wanted.deadline_s is None else time.monotonic() + wanted.deadline_s
        return Request(
            id=uuid.uuid4().hex,
            prompt_ids=tuple(prompt),
            max_tokens=max_tokens,
            sampling=sampling,
            stop=wanted.stop,
            top_logprobs=wanted.top_logprobs,
            ignore_end=wanted.ignore_end,
            deadline_s=deadline_s,
            grammar=wanted.schema,
        )

    def count(self, usage: Usage) -> None:
        """Add a finished answer to the totals of /metrics."""
        self.requests += 1
        self.prompt_tokens += usage.prompt_tokens
        self.output_tokens += usage.output_tokens


class App:
    """The ASGI application: a pure function of the models it is given."""

    def __init__(self, models: dict[str, Served]) -> None:
        self.models = models
        self._started_s = int(time.time())
        self._posts: dict[str, Callable[[wire.Body, Receive, Send], Awaitable[None]]] = {
            "/v1/chat/completions": self._chat,
            "/v1/completions": self._completions,
            "/v1/embeddings": self._embeddings,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        assert scope["type"] == "http"
        started = _Started(send)
        try:
            await self._route(scope, receive, started)
        except LocalModelError as error:
            status, body = wire.error_json(error)
            await started.fail(status, body)
        except _ClientGone:
            pass
        except Exception:
            _log.exception("a request failed")
            status, body = wire.error_json(LocalModelError("an internal error; the log says more"))
            await started.fail(status, body)

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        if method == "POST" and path in self._posts:
            await self._posts[path](await _read_json(receive), receive, send)
        elif method == "GET" and path == "/v1/models":
            await _send_json(send, 200, {"object": "list", "data": [self._card(name) for name in self.models]})
        elif method == "GET" and path.startswith("/v1/models/"):
            await _send_json(send, 200, self._card(self._served(path.removeprefix("/v1/models/")).name))
        elif method == "GET" and path == "/healthz":
            dead = [name for name, served in self.models.items() if served.worker.dead]
            await _send_json(send, 503 if dead else 200, {"status": "dead" if dead else "ok", "dead": dead})
        elif method == "GET" and path == "/metrics":
            await _send(send, 200, b"text/plain; version=0.0.4", self._metrics().encode())
        else:
            _, body = wire.error_json(RequestRefused(f"no {method} {path} here", code="not_found"))
            await _send_json(send, 404, body)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "lifespan.startup"
        for served in self.models.values():
            served.worker.start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        for served in self.models.values():
            await asyncio.to_thread(served.worker.stop)
        await send({"type": "lifespan.shutdown.complete"})

    def _served(self, name: str) -> Served:
        served = self.models.get(name)
        if served is None:
            raise RequestRefused(f"no model {name!r} here", code="model_not_found", param="model")
        if served.worker.dead is not None:
            raise EngineDead(f"the engine of {name} has stopped: {served.worker.dead}")
        return served

    def _card(self, name: str) -> wire.Body:
        return {"id": name, "object": "model", "created": self._started_s, "owned_by": "local"}

    async def _chat(self, body: wire.Body, receive: Receive, send: Send) -> None:
        served = self._served(str(body.get("model")))
        wanted = wire.read_chat(body, served.temperature)
        options = body.get("chat_template_kwargs") or {}
        prompt = served.codec.encode_chat(body["messages"], options)
        await _Answer(served, wanted, [prompt], chat=True).give(receive, send)

    async def _completions(self, body: wire.Body, receive: Receive, send: Send) -> None:
        served = self._served(str(body.get("model")))
        wanted = wire.read_completion(body, served.temperature)
        prompts = wire.completion_prompts(body, served.codec)
        await _Answer(served, wanted, prompts, chat=False).give(receive, send)

    async def _embeddings(self, body: wire.Body, receive: Receive, send: Send) -> None:
        served = self._served(str(body.get("model")))
        inputs = wire.embedding_inputs(body, served.codec)
        encoding = body.get("encoding_format", "float")
        engine = served.worker.engine
        data = []
        for index, ids in enumerate(inputs):
            vector = await served.worker.ask(lambda ids=ids: engine.embed(ids).tolist())  # type: ignore[misc]
            data.append(wire.embedding_json(index, vector, encoding))
        tokens = sum(map(len, inputs))
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        await _send_json(send, 200, {"object": "list", "data": data, "model": served.name, "usage": usage})

    def _metrics(self) -> str:
        lines = []
        for name, kind, meaning, read in _METRICS:
            lines += [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"]
            lines += [f'{name}{{model="{model}"}} {read(served)}' for model, served in self.models.items()]
        return "\n".join(lines) + "\n"


_METRICS: list[tuple[str, str, str, Callable[[Served], float]]] = [
    (
        "local_requests_waiting",
        "gauge",
        "Requests in line.",
        lambda s: len(s.worker.engine.scheduler.waiting),
    ),
    (
        "local_requests_running",
        "gauge",
        "Requests in the batch.",
        lambda s: len(s.worker.engine.scheduler.running),
    ),
    ("local_kv_usage_ratio", "gauge", "Share of key-value blocks in use.", lambda s: _kv_use(s)),
    ("local_kv_cached_ratio", "gauge", "Share kept for later prompts.", lambda s: _kv_cached(s)),
    (
        "local_prefix_asked_tokens_total",
        "counter",
        "Prompt tokens.",
        lambda s: s.worker.engine.blocks.asked_tokens,
    ),
    (
        "local_prefix_hit_tokens_total",
        "counter",
        "Of them cached.",
        lambda s: s.worker.engine.blocks.hit_tokens,
    ),
    (
        "local_preemptions_total",
        "counter",
        "Sequences put aside.",
        lambda s: s.worker.engine.scheduler.preempted,
    ),
    ("local_requests_total", "counter", "Answers given.", lambda s: s.requests),
    ("local_prompt_tokens_total", "counter", "Prompt tokens of given answers.", lambda s: s.prompt_tokens),
    ("local_output_tokens_total", "counter", "Output tokens of given answers.", lambda s: s.output_tokens),
    ("local_drafted_tokens_total", "counter", "Tokens guessed.", lambda s: s.worker.engine.drafted_tokens),
    ("local_accepted_tokens_total", "counter", "Guesses kept.", lambda s: s.worker.engine.accepted_tokens),
    ("local_busy_seconds_total", "counter", "Time spent computing.", lambda s: s.worker.engine.busy_s),
    ("local_engine_steps_total", "counter", "Steps computed.", lambda s: s.worker.engine.steps),
]


class _Answer:
    """All choices of one request, streamed or whole, in one of the two text dialects."""

    def __init__(self, served: Served, wanted: wire.Wanted, prompts: list[list[int]], *, chat: bool) -> None:
        self._served = served
        self._wanted = wanted
        self._chat = chat
        self._prompt_tokens = sum(map(len, prompts))
        self._requests = [
            served.request(wanted, prompt, choice) for prompt in prompts for choice in range(wanted.choices)
        ]
        kind = "chat.completion" if chat else "text_completion"
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": f"{kind}.chunk" if chat and wanted.stream else kind,
            "created": int(time.time()),
            "model": served.name,
        }

    async def give(self, receive: Receive, send: Send) -> None:
        """Answer, and stop computing when the client goes."""
        work = asyncio.ensure_future(self._stream(send) if self._wanted.stream else self._whole(send))
        gone = asyncio.ensure_future(_wait_for_disconnect(receive))
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise _ClientGone
            work.result()
        finally:
            work.cancel()
            gone.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    async def _whole(self, send: Send) -> None:
        choices = await _all([self._collect(index) for index in range(len(self._requests))])
        usages = [usage for _, usage in choices]
        body = {
            **self._head,
            "choices": [choice for choice, _ in choices],
            "usage": wire.usage_json(usages, self._prompt_tokens),
        }
        await _send_json(send, 200, body)

    async def _collect(self, index: int) -> tuple[wire.Body, Usage]:
        text: list[str] = []
        logprobs: list[TokenLogprob] = []
        async with aclosing(self._events(index)) as events:
            async for event in events:
                text.append(event.text)
                if isinstance(event, Delta):
                    logprobs += event.logprobs
                else:
                    return self._choice(index, "".join(text), logprobs, event), event.usage
        raise EngineDead("the engine ended without a word")

    def _choice(self, index: int, text: str, logprobs: list[TokenLogprob], last: Finished) -> wire.Body:
        choice: wire.Body = {"index": index, "finish_reason": wire.finish_reason(last.reason)}
        if self._chat:
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            choice["text"] = text
        choice["logprobs"] = self._logprobs(logprobs, 0)
        return choice

    async def _stream(self, send: Send) -> None:
        """Chunks of all choices as they come; the first waits until every choice has been admitted."""
        merged: asyncio.Queue[tuple[int, Event | Exception]] = asyncio.Queue()
        pumps = [asyncio.ensure_future(self._pump(index, merged)) for index in range(len(self._requests))]
        usages: list[Usage] = []
        lengths = [0] * len(self._requests)
        try:
            index, event = await merged.get()
            if isinstance(event, Exception):
                raise event
            await _start_stream(send)
            if self._chat:
                for each in range(len(self._requests)):
                    await self._send_chunk(send, each, {"role": "assistant", "content": "", "refusal": None})
            while True:
                if isinstance(event, Exception):
                    raise event
                await self._send_event(send, index, event, lengths)
                if isinstance(event, Finished):
                    usages.append(event.usage)
                    if len(usages) == len(self._requests):
                        break
                index, event = await merged.get()
            await self._end_stream(send, usages)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(self, index: int, merged: asyncio.Queue[tuple[int, Event | Exception]]) -> None:
        try:
            async with aclosing(self._events(index)) as events:
                async for event in events:
                    merged.put_nowait((index, event))
        except LocalModelError as error:
            merged.put_nowait((index, error))

    async def _events(self, index: int) -> AsyncGenerator[Event, None]:
        """The engine's events of one choice; an ending that is an error is raised as one."""
        async with aclosing(self._served.worker.generate(self._requests[index])) as events:
            async for event in events:
                if isinstance(event, Finished):
                    if event.reason == "error":
                        raise LocalModelError(event.message)
                    self._served.count(event.usage)
                yield event

    async def _send_event(self, send: Send, index: int, event: Event, lengths: list[int]) -> None:
        logprobs = None
        if isinstance(event, Delta):
            logprobs = self._logprobs(list(event.logprobs), lengths[index])
        if event.text or logprobs:
            await self._send_chunk(send, index, event.text, logprobs)
        lengths[index] += len(event.text)
        if isinstance(event, Finished):
            await self._send_chunk(send, index, {} if self._chat else "", None, wire.finish_reason(event.reason))

    async def _send_chunk(
        self,
        send: Send,
        index: int,
        delta: wire.Body | str,
        logprobs: wire.Body | None = None,
        finish: str | None = None,
    ) -> None:
        choice: wire.Body = {"index": index, "logprobs": logprobs, "finish_reason": finish}
        if self._chat:
            choice["delta"] = {"content": delta} if isinstance(delta, str) else delta
        else:
            choice["text"] = delta
        chunk = {**self._head, "choices": [choice]}
        if self._wanted.include_usage:
            chunk["usage"] = None
        await _send_event_bytes(send, chunk)

    async def _end_stream(self, send: Send, usages: list[Usage]) -> None:
        if self._wanted.include_usage:
            usage = wire.usage_json(usages, self._prompt_tokens)
            await _send_event_bytes(send, {**self._head, "choices": [], "usage": usage})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    def _logprobs(self, logprobs: list[TokenLogprob], offset: int) -> wire.Body | None:
        if self._wanted.top_logprobs is None or not logprobs:
            return None
        if self._chat:
            return wire.chat_logprobs(logprobs, self._served.codec)
        return wire.completion_logprobs(logprobs, self._served.codec, offset)


class _ClientGone(Exception):
    """Nobody is left to answer."""


class _Started:
    """Passes messages on and knows whether a response has begun: after that an error can only be a last
    event."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._begun = False

    async def __call__(self, message: dict[str, Any]) -> None:
        self._begun = True
        await self._send(message)

    async def fail(self, status: int, body: wire.Body) -> None:
        if not self._begun:
            await _send_json(self._send, status, body)
            return
        await _send_event_bytes(self._send, body)
        await self._send({"type": "http.response.body", "body": b""})


async def _all(jobs: list[Awaitable[Any]]) -> list[Any]:
    """Results of all; when one fails the others are cancelled and awaited first."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _read_json(receive: Receive) -> wire.Body:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _ClientGone
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > _MOST_BODY_BYTES:
            raise RequestRefused("the body is too large")
        if not message.get("more_body", False):
            break
    try:
        body = json.loads(b"".join(parts))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestRefused(f"the body is not JSON: {error}", code="invalid_json") from error
    if not isinstance(body, dict):
        raise RequestRefused("the body must be a JSON object", code="invalid_json")
    return body


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send(send: Send, status: int, content_type: bytes, body: bytes) -> None:
    headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _send_json(send: Send, status: int, body: wire.Body) -> None:
    await _send(send, status, b"application/json", json.dumps(body, ensure_ascii=False).encode())


async def _start_stream(send: Send) -> None:
    headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def _send_event_bytes(send: Send, body: wire.Body) -> None:
    data = b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"
    await send({"type": "http.response.body", "body": data, "more_body": True})


def _kv_use(served: Served) -> float:
    blocks = served.worker.engine.blocks
    return 1.0 - (blocks.free + blocks.cached) / blocks.count if blocks.count else 0.0


def _kv_cached(served: Served) -> float:
    blocks = served.worker.engine.blocks
    return blocks.cached / blocks.count if blocks.count else 0.0


def _default_temperature(folder: Path) -> float:
    """0 when the folder asks for greedy decoding; its own temperature, else OpenAI's 1."""
    path = folder / "generation_config.json"
    generation = json.loads(path.read_text()) if path.is_file() else {}
    if generation.get("do_sample") is False:
        return 0.0
    return float(generation.get("temperature") or 1.0)


async def _run(app: App, arguments: argparse.Namespace) -> None:
    """Serve until told to stop, or until an engine dies: then the process ends, for its supervisor to
    replace."""
    config = uvicorn.Config(
        app,
        host=arguments.host,
        port=arguments.port,
        uds=str(arguments.uds) if arguments.uds else None,
        log_level="warning",
        lifespan="on",
        timeout_graceful_shutdown=5,
    )
    server = uvicorn.Server(config)
    serving = asyncio.ensure_future(server.serve())
    while not serving.done():
        await asyncio.wait((serving,), timeout=0.5)
        if any(served.worker.dead for served in app.models.values()):
            _log.error("an engine is dead, the process ends")
            os.kill(os.getpid(), signal.SIGKILL)
        if arguments.parent and os.getppid() != arguments.parent:
            server.should_exit = True
    await serving


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(description="Serve local models in OpenAI's dialect.")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--uds", type=Path, help="path of the Unix socket")
    where.add_argument("--port", type=int, help="TCP port")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--parent", type=int, default=0, help="end when this process is no longer the parent")
    parser.add_argument("--models", type=json.loads, help='JSON: {"name": "folder", ...}; default: the shipped')
    parser.add_argument("--options", type=json.loads, default={}, help=f"JSON of {', '.join(_OPTIONS)}")
    for name in _ENGINE_OPTIONS:
        kind = type(getattr(EngineOptions(), name))
        if kind is bool:
            parser.add_argument(f"--{name.replace('_', '-')}", action="store_true", default=None)
        else:
            parser.add_argument(f"--{name.replace('_', '-')}", type=kind)
    parser.add_argument("--threads", type=int, help="torch's threads; default 1")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    try:
        given = {name: value for name in _OPTIONS if (value := getattr(arguments, name)) is not None}
        app = _app({**arguments.options, **given})
    except LocalModelError as error:
        parser.exit(2, f"{error}\n")
    asyncio.run(_run(app, arguments))


_ENGINE_OPTIONS = (
    "kv_tokens", "step_tokens", "most_running", "most_waiting", "dtype", "int8", "draft_tokens", "draft_budget",
)  # fmt: skip
_OPTIONS = ("models", "threads", *_ENGINE_OPTIONS)


def _app(options: dict[str, Any]) -> App:
    """The application the options describe; those that are None keep their defaults."""
    unknown = options.keys() - set(_OPTIONS)
    if unknown:
        raise LocalModelError(f"unknown options {', '.join(sorted(unknown))}; known: {', '.join(_OPTIONS)}")
    torch.set_num_threads(options.get("threads") or 1)
    chosen = {name: options[name] for name in _ENGINE_OPTIONS if options.get(name) is not None}
    engine_options = EngineOptions(**chosen)
    folders = options.get("models") or shipped_models()
    return App({name: Served(name, Path(folder), engine_options) for name, folder in folders.items()})


if __name__ == "__main__":
    main()
