"""Structured output: only tokens that a JSON schema allows, by llguidance where it is installed.

Refuses a schema that cannot be compiled, with the compiler's reason, and any schema when the library is
absent: an answer is never silently unconstrained.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt

from local_models.errors import RequestRefused
from local_models.text import TextCodec

ANY_OBJECT = json.dumps({"type": "object"})


class Grammars:
    """Compiles schemas for one tokenizer; `vocabulary` is the length of the model's rows of scores."""

    def __init__(self, codec: TextCodec, vocabulary: int, end_ids: tuple[int, ...]) -> None:
        self._codec = codec
        self._vocabulary = vocabulary
        self._end_ids = end_ids
        self._tokenizer: Any = None

    def matcher(self, schema: str) -> Matcher:
        """A fresh matcher; `RequestRefused` when the schema cannot be compiled."""
        try:
            import llguidance
        except ImportError as error:
            raise RequestRefused(
                "structured output needs the package llguidance",
                code="unsupported_value",
                param="response_format",
            ) from error
        if self._tokenizer is None:
            self._tokenizer = self._new_tokenizer(llguidance)
        try:
            grammar = llguidance.LLMatcher.grammar_from_json_schema(schema, defaults={"whitespace_flexible": False})
        except ValueError as error:
            raise _refusal(str(error)) from error
        matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise _refusal(matcher.get_error())
        return Matcher(matcher, self._vocabulary)

    def _new_tokenizer(self, llguidance: Any) -> Any:
        if not self._end_ids:
            raise RequestRefused(
                "a model without an end token cannot end a structured answer",
                code="unsupported_value",
                param="response_format",
            )
        ends = list(self._end_ids)
        try:
            return llguidance.LLTokenizer(self._codec.tokenizer.to_str(), self._vocabulary, ends)
        except ValueError:
            # It knows byte-level and sentencepiece decoders; others are described token by token.
            wrapper = llguidance.TokenizerWrapper(_Described(self._codec, self._vocabulary, ends[0]))
            return llguidance.LLTokenizer(wrapper, self._vocabulary, ends)


class Matcher:
    """What one answer's grammar allows next."""

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary

    def allowed(self) -> npt.NDArray[np.bool_]:
        """One flag a token; when the grammar is complete only end tokens are left."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        return np.unpackbits(bits, bitorder="little")[: self._vocabulary].astype(np.bool_)

    def advance(self, token_id: int) -> None:
        """Take a chosen token."""
        self._matcher.consume_token(token_id)


class _Described:
    """A tokenizer as the list of its tokens' bytes."""

    def __init__(self, codec: TextCodec, vocabulary: int, end_id: int) -> None:
        self._codec = codec
        self.eos_token_id = end_id
        self.bos_token_id = None
        self.tokens = [codec.token(i).encode() if i < codec.size else b"" for i in range(vocabulary)]
        self.special_token_ids = codec.special_ids

    def __call__(self, text: str | bytes) -> list[int]:
        return self._codec.encode(text.decode() if isinstance(text, bytes) else text)


def _refusal(reason: str) -> RequestRefused:
    return RequestRefused(f"the schema cannot be compiled: {reason}", param="response_format")
