"""Structured output: only tokens that a JSON schema, a regular expression, a list of choices or a grammar allows, by
llguidance where it is installed.

Refuses what cannot be compiled, with the compiler's reason, and everything when the library is absent: an
answer is never silently unconstrained.
"""

from __future__ import annotations

import json
import re
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from local_models.errors import RequestRefused
from local_models.text import TextCodec

ANY_OBJECT = json.dumps({"type": "object"})
Kind = Literal["json", "regex", "lark"]


class Grammar(NamedTuple):
    """What an answer must obey."""

    kind: Kind
    text: str
    """A JSON schema, a regular expression that the whole answer matches (Rust's syntax), or a Lark grammar."""
    param: str = "response_format"
    """The request's field that asked for it, for refusals."""


def one_of(choices: list[str], param: str) -> Grammar:
    """The answer is one of these texts."""
    return Grammar("regex", "|".join(re.escape(choice) for choice in choices), param)


class Grammars:
    """Compiles grammars for one tokenizer; `vocabulary` is the length of the model's rows of scores."""

    def __init__(self, codec: TextCodec, vocabulary: int, end_ids: tuple[int, ...]) -> None:
        self._codec = codec
        self._vocabulary = vocabulary
        self._end_ids = end_ids
        self._tokenizer: Any = None

    def matcher(self, wanted: Grammar) -> Matcher:
        """A fresh matcher; `RequestRefused` when the grammar cannot be compiled."""
        try:
            import llguidance
        except ImportError as error:
            raise RequestRefused(
                "structured output needs the package llguidance",
                code="unsupported_value",
                param=wanted.param,
            ) from error
        if self._tokenizer is None:
            self._tokenizer = self._new_tokenizer(llguidance)
        try:
            grammar = _compiled(llguidance.LLMatcher, wanted)
        except ValueError as error:
            raise _refusal(str(error), wanted) from error
        matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise _refusal(matcher.get_error(), wanted)
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


class NoTokenAllowed(Exception):
    """The structure can't be kept to: it is empty, or needs characters that the model's tokens don't have."""


class Matcher:
    """What one answer's grammar allows next."""

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary

    def allowed(self) -> npt.NDArray[np.bool_]:
        """One flag a token; when the grammar is complete only end tokens are left.

        Raises `NoTokenAllowed` where it is not and no token of the model can go on.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise NoTokenAllowed("no token of this model can go on in the structure that was asked for")
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


def _compiled(matcher: Any, wanted: Grammar) -> str:
    if wanted.kind == "regex":
        return str(matcher.grammar_from_regex(wanted.text))
    if wanted.kind == "lark":
        return str(matcher.grammar_from_lark(wanted.text))
    return str(matcher.grammar_from_json_schema(wanted.text, defaults={"whitespace_flexible": False}))


def _refusal(reason: str, wanted: Grammar) -> RequestRefused:
    name = {"json": "schema", "regex": "regular expression", "lark": "grammar"}[wanted.kind]
    return RequestRefused(f"the {name} cannot be compiled: {reason}", param=wanted.param)
