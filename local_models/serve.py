"""The server of local models, OpenAI's dialect over HTTP: `python -m local_models.serve --port 9000`.

It runs as a child process of whoever supervises it: when the engine of a model dies the process ends, its connections
break, and the supervisor starts another while the callers fail over. Without `--models` it serves the models shipped
with the package. A refused request, a client that left and a passed deadline affect that request only. A model that
can't be loaded is reported to whoever asks for it; the others are served.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import uvicorn

from local_models import folder_of, shipped_models
from local_models import openai_wire as wire
from local_models.answer import Answer
from local_models.asgi import ClientGone, Receive, Scope, Send, Started, read_json, send_body, send_json
from local_models.encoder import is_encoder
from local_models.errors import EngineDead, LocalModelError, ModelLost, RequestRefused
from local_models.options import ENGINE_OPTIONS, SERVER_OPTIONS, EngineOptions, faults
from local_models.served import ServedModel, metrics_page
from local_models.served_encoder import ServedEncoder, encoders_page

_log = logging.getLogger(__name__)


class App:
    """The ASGI application: a pure function of the models it is given."""

    def __init__(
        self, models: dict[str, ServedModel], encoders: dict[str, ServedEncoder] | None = None, lost: Iterable[str] = ()
    ) -> None:
        """`lost`: models that could not be loaded."""
        self.models = models
        self.encoders = encoders or {}
        self.lost = sorted(lost)
        self._started_s = int(time.time())
        self._posts: dict[str, Callable[[wire.Body, Receive, Send], Awaitable[None]]] = {
            "/v1/chat/completions": self._chat,
            "/v1/completions": self._completions,
            "/v1/embeddings": self._embeddings,
            "/v1/score": self._score,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        assert scope["type"] == "http"
        started = Started(send)
        try:
            await self._route(scope, receive, started)
        except LocalModelError as error:
            status, body = wire.error_json(error)
            await started.fail(status, body, wire.error_headers(error))
        except ClientGone:
            pass
        except Exception:
            _log.exception("a request failed")
            status, body = wire.error_json(LocalModelError("an internal error; the log says more"))
            await started.fail(status, body)

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        if method == "POST" and path in self._posts:
            await self._posts[path](await read_json(receive), receive, send)
        elif method == "GET" and path == "/v1/models":
            await send_json(
                send, 200, {"object": "list", "data": [self._card(n) for n in (*self.models, *self.encoders)]}
            )
        elif method == "GET" and path.startswith("/v1/models/"):
            name = path.removeprefix("/v1/models/")
            await send_json(send, 200, self._card(name if name in self.encoders else self._served(name).name))
        elif method == "GET" and path == "/healthz":
            dead = [name for name, served in self.models.items() if served.worker.dead]
            state = {"status": "dead" if dead else "ok", "dead": dead, "lost": self.lost}
            await send_json(send, 503 if dead else 200, state)
        elif method == "GET" and path == "/metrics":
            await send_body(send, 200, b"text/plain; version=0.0.4", self._metrics().encode())
        else:
            _, body = wire.error_json(RequestRefused(f"no {method} {path} here", code="not_found"))
            await send_json(send, 404, body)

    def _metrics(self) -> str:
        return metrics_page(self.models) + encoders_page(self.encoders)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "lifespan.startup"
        for served in self.models.values():
            served.worker.start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        for served in self.models.values():
            await asyncio.to_thread(served.worker.stop)
        await send({"type": "lifespan.shutdown.complete"})

    def _served(self, name: str) -> ServedModel:
        served = self.models.get(name)
        if name in self.encoders:
            raise RequestRefused(f"{name} is an encoder: it embeds texts, it answers none", param="model")
        if name in self.lost:
            raise ModelLost(f"the model {name} could not be loaded; the log of its server says why")
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
        await Answer(served, wanted, [prompt], chat=True).give(receive, send)

    async def _completions(self, body: wire.Body, receive: Receive, send: Send) -> None:
        served = self._served(str(body.get("model")))
        wanted = wire.read_completion(body, served.temperature)
        prompts = wire.completion_prompts(body, served.codec)
        await Answer(served, wanted, prompts, chat=False).give(receive, send)

    async def _embeddings(self, body: wire.Body, receive: Receive, send: Send) -> None:
        name = str(body.get("model"))
        encoder = self.encoders.get(name)
        model = encoder or self._served(name)
        inputs = wire.embedding_inputs(body, model.codec)
        vectors = await encoder.embed(inputs) if encoder else await _embedded(self._served(name), inputs)
        encoding = body.get("encoding_format", "float")
        data = [wire.embedding_json(index, vector, encoding) for index, vector in enumerate(vectors)]
        tokens = sum(map(len, inputs))
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        await send_json(send, 200, {"object": "list", "data": data, "model": model.name, "usage": usage})

    async def _score(self, body: wire.Body, receive: Receive, send: Send) -> None:
        served = self._served(str(body.get("model")))
        prompt, answer = wire.scoring_inputs(body, served.codec)
        engine = served.worker.engine
        logprobs = await served.worker.ask(lambda: engine.score(prompt, answer))
        await send_json(send, 200, wire.score_json(served.name, len(prompt), answer, logprobs, served.codec))


async def _embedded(served: ServedModel, inputs: list[list[int]]) -> list[list[float]]:
    """Mean hidden states of a decoder, one text a step so that answers go on between them."""
    engine, vectors = served.worker.engine, list[list[float]]()
    for ids in inputs:
        vectors.append(await served.worker.ask(lambda ids=ids: engine.embed(ids).tolist()))  # type: ignore[misc]
    return vectors


async def _run(app: App, args: argparse.Namespace) -> None:
    """Serve until told to stop, or until an engine dies: then the process ends, for its supervisor to
    replace."""
    config = uvicorn.Config(
        app,
        host=args.host,
        port=args.port,
        uds=str(args.uds) if args.uds else None,
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
        if args.parent and os.getppid() != args.parent:
            server.should_exit = True
    await serving


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(description="Serve models of this machine by the OpenAI API.")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--uds", type=Path, help="path of the Unix socket")
    where.add_argument("--port", type=int, help="TCP port")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--parent", type=int, default=0, help="id of the process that this one must not outlive")
    parser.add_argument("--models", type=json.loads, help='JSON: {"name": "folder", ...} (default: those shipped)')
    parser.add_argument("--options", type=json.loads, default={}, help="all of these as JSON, with _ for - in names")
    for name, meaning in ENGINE_OPTIONS.items():
        value = getattr(EngineOptions(), name)
        told = meaning if value is None else f"{meaning} (default {str(value).lower()})"
        kind = str if value is None else type(value)
        if kind is bool:
            parser.add_argument(f"--{name.replace('_', '-')}", action=argparse.BooleanOptionalAction, help=told)
        else:
            parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=told)
    parser.add_argument("--threads", type=int, help="threads of torch (default 1)")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    try:
        given = {name: value for name in SERVER_OPTIONS if (value := getattr(args, name)) is not None}
        beside = {"settings_folder": str(args.uds.parent)} if args.uds else {}
        app = _app({**beside, **args.options, **given})
    except LocalModelError as error:
        parser.exit(2, f"{error}\n")
    asyncio.run(_run(app, args))


def _app(options: dict[str, Any]) -> App:
    """The application that the options describe; options that are None keep their defaults."""
    found = [f"option {name}: {fault}" for name, fault in faults(options)]
    if found:
        raise LocalModelError("; ".join(found))
    torch.set_num_threads(options.get("threads") or 1)
    chosen = {name: options[name] for name in ENGINE_OPTIONS if options.get(name) is not None}
    if "draft_model" in chosen:
        chosen["draft_model"] = str(folder_of(chosen["draft_model"]))
    engine_options = EngineOptions(**chosen)
    named = options.get("models") or shipped_models()
    folders = {name: folder_of(folder) for name, folder in named.items()}
    encoders, models, lost = dict[str, ServedEncoder](), dict[str, ServedModel](), dict[str, LocalModelError]()
    for name, folder in folders.items():
        try:
            if is_encoder(folder):
                encoders[name] = ServedEncoder(name, folder)
            else:
                models[name] = ServedModel(name, folder, engine_options)
        except LocalModelError as error:
            _log.error("the model %s can't be loaded: %s", name, error)
            lost[name] = error
    if len(lost) == len(folders):
        raise next(iter(lost.values()))
    return App(models, encoders, lost.keys())


if __name__ == "__main__":
    main()
