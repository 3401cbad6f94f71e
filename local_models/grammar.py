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
    """Compiles schemas for one tokenizer."""

    def __init__(self, codec: TextCodec) -> None:
        self._codec = codec
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
            self._tokenizer = llguidance.LLTokenizer(self._codec.tokenizer.to_str())
        try:
            grammar = llguidance.LLMatcher.grammar_from_json_schema(
                schema, defaults={"whitespace_flexible": False}
            )
            matcher = llguidance.LLMatcher(self._tokenizer, grammar)
        except ValueError as error:
            raise _refusal(str(error)) from error
        if matcher.is_error():
            raise _refusal(matcher.get_error())
        return Matcher(matcher, self._tokenizer.vocab_size)


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


def _refusal(reason: str) -> RequestRefused:
    return RequestRefused(f"the schema cannot be compiled: {reason}", param="response_format")
