"""One answer to one request: all its choices, streamed or whole, in the chat or the completions dialect.

Whoever asked may leave at any time; what is computed for them then stops.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from typing import Any

from local_models import openai_wire as wire
from local_models.asgi import ClientGone, Receive, Send, send_event, send_json, start_stream, wait_for_disconnect
from local_models.errors import EngineDead, LocalModelError, RequestRefused
from local_models.request import Delta, Event, Finished, TokenLogprob, Usage
from local_models.served import ServedModel


class Answer:
    """All choices of one request, streamed or whole, in one of the two text dialects."""

    def __init__(
        self, served: ServedModel, wanted: wire.GenerationParams, prompts: list[list[int]], *, chat: bool
    ) -> None:
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
        gone = asyncio.ensure_future(wait_for_disconnect(receive))
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise ClientGone
            work.result()
        finally:
            work.cancel()
            gone.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    async def _whole(self, send: Send) -> None:
        choices = await _all([self._collect(index) for index in range(len(self._requests))])
        body = {
            **self._head,
            "choices": [choice for choice, _ in choices],
            "usage": wire.usage_json([last.usage for _, last in choices], self._prompt_tokens),
            **self._met(choices[0][1]),
        }
        await send_json(send, 200, body)

    def _met(self, last: Finished) -> wire.Body:
        """Which stop string ended the only answer, as Anthropic's API names it and OpenAI's has no word for."""
        return {"stop_sequence": last.stopped_by} if last.stopped_by and len(self._requests) == 1 else {}

    async def _collect(self, index: int) -> tuple[wire.Body, Finished]:
        text: list[str] = []
        logprobs: list[TokenLogprob] = []
        async with aclosing(self._events(index)) as events:
            async for event in events:
                text.append(event.text)
                if isinstance(event, Delta):
                    logprobs += event.logprobs
                else:
                    return self._choice(index, "".join(text), logprobs, event), event
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
            await start_stream(send)
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
                    if event.reason == "refused":
                        grammar = self._wanted.grammar
                        raise RequestRefused(event.message, param=grammar.param if grammar else None)
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
            met, ending = self._met(event), wire.finish_reason(event.reason)
            await self._send_chunk(send, index, {} if self._chat else "", None, ending, met)

    async def _send_chunk(
        self,
        send: Send,
        index: int,
        delta: wire.Body | str,
        logprobs: wire.Body | None = None,
        finish: str | None = None,
        met: wire.Body | None = None,
    ) -> None:
        choice: wire.Body = {"index": index, "logprobs": logprobs, "finish_reason": finish}
        if self._chat:
            choice["delta"] = {"content": delta} if isinstance(delta, str) else delta
        else:
            choice["text"] = delta
        chunk = {**self._head, "choices": [choice], **(met or {})}
        if self._wanted.include_usage:
            chunk["usage"] = None
        await send_event(send, chunk)

    async def _end_stream(self, send: Send, usages: list[Usage]) -> None:
        if self._wanted.include_usage:
            usage = wire.usage_json(usages, self._prompt_tokens)
            await send_event(send, {**self._head, "choices": [], "usage": usage})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    def _logprobs(self, logprobs: list[TokenLogprob], offset: int) -> wire.Body | None:
        if self._wanted.top_logprobs is None or not logprobs:
            return None
        if self._chat:
            return wire.chat_logprobs(logprobs, self._served.codec)
        return wire.completion_logprobs(logprobs, self._served.codec, offset)


async def _all(jobs: list[Awaitable[Any]]) -> list[Any]:
    """Results of all; when one fails the others are cancelled and awaited first."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
