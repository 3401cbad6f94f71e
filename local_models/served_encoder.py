"""An encoder that the server serves by its name. Texts that arrive while a batch is computed form the next batch."""

from __future__ import annotations

import asyncio
import math
import time
from pathlib import Path

from local_models.encoder import Encoder
from local_models.errors import EngineFull, LocalModelError, PromptTooLong, RequestRefused

_MOST_WAITING_TEXTS = 4096
_MOST_BATCH_TOKENS = 8192
Vectors = list[list[float]]


class ServedEncoder:
    """One encoder by its name."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.encoder = Encoder(folder)
        self.codec = self.encoder.codec
        self.texts = 0
        self.tokens = 0
        self.batches = 0
        self._batch_s = 1.0
        """Seconds that the last batch took."""
        self._waiting: list[tuple[list[list[int]], asyncio.Future[Vectors]]] = []
        self._working: asyncio.Task[None] | None = None

    async def embed(self, texts: list[list[int]]) -> Vectors:
        """One vector a text; raises `RequestRefused` or `EngineFull`."""
        vocabulary = len(self.encoder._words)
        longest = max(map(len, texts))
        if longest > self.encoder.most_tokens:
            raise PromptTooLong(f"{longest} tokens exceed {self.encoder.most_tokens}", param="input")
        if any(not 0 <= token < vocabulary for ids in texts for token in ids):
            raise RequestRefused("input holds ids that are no tokens of this model", param="input")
        if sum(len(waiting) for waiting, _ in self._waiting) + len(texts) > _MOST_WAITING_TEXTS:
            raise EngineFull("too many texts wait already", self._batch_s)
        answer: asyncio.Future[Vectors] = asyncio.get_running_loop().create_future()
        self._waiting.append((texts, answer))
        if self._working is None or self._working.done():
            self._working = asyncio.ensure_future(self._work())
        return await answer

    async def _work(self) -> None:
        while self._waiting:
            batch = self._next_batch()
            texts = [ids for asked, _ in batch for ids in asked]
            begun_s = time.monotonic()
            try:
                vectors = (await asyncio.to_thread(self.encoder.embed, texts)).tolist()
            except Exception as error:  # whatever it was, those who asked must hear of it
                for _, answer in batch:
                    if not answer.done():
                        answer.set_exception(error)
                continue
            self.batches += 1
            self._batch_s = time.monotonic() - begun_s
            self.texts += len(texts)
            self.tokens += sum(map(len, texts))
            for asked, answer in batch:
                _give(answer, vectors[: len(asked)])
                vectors = vectors[len(asked) :]

    def _next_batch(self) -> list[tuple[list[list[int]], asyncio.Future[Vectors]]]:
        """The first that wait, as many as fit; one request is never divided."""
        tokens, count = 0, 0
        for texts, _ in self._waiting:
            tokens += sum(map(len, texts))
            if count and tokens > _MOST_BATCH_TOKENS:
                break
            count += 1
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        return [(texts, answer) for texts, answer in batch if not answer.done()] or batch


def _give(answer: asyncio.Future[Vectors], vectors: Vectors) -> None:
    """A text whose vector holds no numbers is the error of its own request."""
    if answer.done():
        return
    if all(math.isfinite(number) for vector in vectors for number in vector):
        answer.set_result(vectors)
    else:
        answer.set_exception(LocalModelError("what the model computed of this text are not numbers"))


def encoders_page(encoders: dict[str, ServedEncoder]) -> str:
    """Prometheus text of all encoders; nothing where there are none."""
    lines: list[str] = []
    for name in ("texts", "tokens", "batches") if encoders else ():
        lines += [f"# TYPE local_encoder_{name}_total counter"]
        lines += [f'local_encoder_{name}_total{{model="{model}"}} {getattr(e, name)}' for model, e in encoders.items()]
    return "".join(line + "\n" for line in lines)
