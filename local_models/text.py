"""Text to token ids and back: the folder's tokenizer, its chat template, and answers that arrive token by token.

Messages that the template can't render are refused. A special token that a user types stays text and never ends a turn.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from local_models.errors import CheckpointError, RequestRefused
from local_models.shape import read_object

_REPLACEMENT = "�"
_CACHED_WORDS = 1000


def _bound_cache(tokenizer: Tokenizer) -> None:
    """Bound the tokenizer's cache. A tokenizer that cuts no words would keep whole texts in it, up to 22 MB."""
    resize = getattr(tokenizer.model, "_resize_cache", None)
    if resize is not None:
        resize(_CACHED_WORDS)


class TextCodec:
    """One model's tokenizer and chat template."""

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(f"{folder} has no tokenizer.json")
        try:
            self.tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for every malformed file
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        _bound_cache(self.tokenizer)
        self.config = _read_config(folder)
        added = self.tokenizer.get_added_tokens_decoder()
        self.special_ids = [token_id for token_id, token in added.items() if token.special]
        self._special = {added[token_id].content for token_id in self.special_ids}
        source = _chat_template(folder, self.config)
        try:
            self._template = _environment().from_string(source) if source else None
        except TemplateError as error:
            raise CheckpointError(f"the chat template of {folder} cannot be read: {error}") from error

    @property
    def size(self) -> int:
        """Number of token ids, added ones included."""
        return int(self.tokenizer.get_vocab_size(with_added_tokens=True))

    def require_match(self, vocabulary: int, end_ids: Collection[int]) -> None:
        """Raise CheckpointError where the tokenizer is another model's: its ids go beyond the scores of this one, or it
        lacks the tokens that end an answer."""
        highest = max(self.tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        if highest >= vocabulary:
            raise CheckpointError(f"the tokenizer has ids up to {highest}, the model has {vocabulary}: it is another's")
        unknown = [token_id for token_id in end_ids if self.tokenizer.id_to_token(token_id) is None]
        if end_ids and len(unknown) == len(end_ids):
            raise CheckpointError(f"the tokenizer lacks the tokens {unknown} that end this model's answers")

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text."""
        return list(self.tokenizer.encode(text).ids)

    def decode(self, ids: list[int]) -> str:
        """Text of token ids, special tokens left out."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def token(self, token_id: int) -> str:
        """One token's own text, special ones as they are written."""
        text = str(self.tokenizer.decode([token_id], skip_special_tokens=False))
        return text or self.tokenizer.id_to_token(token_id) or ""

    def encode_chat(self, messages: list[dict[str, Any]], options: dict[str, Any] | None = None) -> list[int]:
        """Token ids of a conversation, ending where the assistant's answer begins."""
        if self._template is None:
            raise RequestRefused("this model has no chat template; use /v1/completions", param="messages")
        cleaned = [self._without_special_tokens(message) for message in messages]
        try:
            prompt = self._template.render(
                messages=cleaned,
                add_generation_prompt=True,
                bos_token=_token_text(self.config.get("bos_token")),
                eos_token=_token_text(self.config.get("eos_token")),
                **(options or {}),
            )
        except (TemplateError, TypeError, KeyError) as error:
            raise RequestRefused(f"the chat template refuses these messages: {error}", param="messages") from error
        return list(self.tokenizer.encode(prompt, add_special_tokens=False).ids)

    def _without_special_tokens(self, message: dict[str, Any]) -> dict[str, Any]:
        content = message.get("content")
        if not isinstance(content, str):
            return message
        for token in self._special:
            # A zero-width joiner between the characters keeps the text readable and no longer the token.
            if token in content:
                content = content.replace(token, token[0] + "‍" + token[1:])
        return {**message, "content": content}


class TokenStream:
    """Text of an answer as its tokens arrive. What may still change or become a stop string is held back."""

    def __init__(self, codec: TextCodec, stop: tuple[str, ...] = ()) -> None:
        self._codec = codec
        self._stop = stop
        self._hold = max((len(s) for s in stop), default=1) - 1
        self._ids: list[int] = []
        self._prefix = 0
        self._read = 0
        self._pending = ""
        self.stopped_by: str | None = None

    @property
    def stops(self) -> bool:
        """Whether some string ends the answer."""
        return bool(self._stop)

    def push(self, *token_ids: int) -> str:
        """The text that is final after one more token; sets `stopped_by` when a stop string is complete. Where none
        is, several tokens may come at once."""
        self._ids += token_ids
        self._pending += self._decoded()
        return self._release(final=False)

    def finish(self) -> str:
        """The text held back so far."""
        self._pending += self._decoded(final=True)
        return self._release(final=True)

    def _decoded(self, final: bool = False) -> str:
        """New text since the last call; a token may be a part of a character, so decode with what
        precedes."""
        before = self._codec.decode(self._ids[self._prefix : self._read])
        after = self._codec.decode(self._ids[self._prefix :])
        if not final and (len(after) <= len(before) or after.endswith(_REPLACEMENT)):
            return ""
        self._prefix, self._read = self._read, len(self._ids)
        return after[len(before) :]

    def _release(self, *, final: bool) -> str:
        if self.stopped_by is not None:
            return ""
        found = [(self._pending.find(s), s) for s in self._stop]
        hits = [(at, s) for at, s in found if at >= 0]
        if hits:
            at, self.stopped_by = min(hits)
            text, self._pending = self._pending[:at], ""
            return text
        keep = 0 if final else self._kept()
        text = self._pending[: len(self._pending) - keep]
        self._pending = self._pending[len(self._pending) - keep :]
        return text

    def _kept(self) -> int:
        """Number of characters at the end of the pending text that may begin a stop string."""
        for length in range(min(self._hold, len(self._pending)), 0, -1):
            tail = self._pending[-length:]
            if any(s.startswith(tail) for s in self._stop):
                return length
        return 0


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    environment.globals["raise_exception"] = _refuse
    return environment


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    return read_object(path) if path.is_file() else {}


def _chat_template(folder: Path, config: dict[str, Any]) -> str:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text()
    template = config.get("chat_template") or ""
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        return str(named.get("default", ""))
    return str(template)


def _token_text(token: object) -> str:
    if isinstance(token, dict):
        return str(token.get("content", ""))
    return str(token or "")
