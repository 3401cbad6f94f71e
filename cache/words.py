"""Lexical comparison of two questions: which words they share, and in which they differ.

Vectors place "turn it on" beside "turn it off"; words do not. Everything here is counting, without a model, and takes a
few microseconds for two questions.
"""

from __future__ import annotations

import math
import re
import unicodedata
from functools import lru_cache
from sys import intern

_TOKEN = re.compile(r"\d+(?:[.,:]\d+)*|[^\W\d_]+")
_SHORT = (("n't", " not"), ("n’t", " not"), ("cannot", "can not"), ("'s", ""), ("’s", ""))

NEGATIONS = frozenset(
    [
        *("not", "no", "never", "without", "nor", "neither", "none", "unable", "dont", "doesnt", "isnt", "wont"),
        *("cant", "nicht", "kein", "keine", "keinen", "ohne", "niemals", "pas", "aucun", "aucune", "jamais", "sans"),
        *("sin", "nunca", "non", "senza", "mai", "não", "sem", "niet", "geen", "zonder"),
    ]
)
"""Of English and, as far as one word does it, German, French, Spanish, Italian, Portuguese and Dutch."""
QUESTION_WORDS = frozenset(
    [
        "what",
        "why",
        "how",
        "when",
        "where",
        "who",
        "which",
        "whose",
        "whom",
        "can",
        "does",
        "is",
        "are",
        "do",
        "should",
        "will",
    ]
)
STOP_WORDS = frozenset(
    [
        "a",
        "an",
        "the",
        "of",
        "to",
        "in",
        "on",
        "at",
        "for",
        "and",
        "or",
        "is",
        "are",
        "was",
        "were",
        "be",
        "been",
        "am",
        "i",
        "you",
        "we",
        "they",
        "he",
        "she",
        "it",
        "my",
        "your",
        "our",
        "their",
        "me",
        "us",
        "them",
        "this",
        "that",
        "these",
        "those",
        "do",
        "does",
        "did",
        "have",
        "has",
        "had",
        "with",
        "from",
        "by",
        "as",
        "if",
        "so",
        "but",
        "can",
        "could",
        "will",
        "would",
        "should",
        "may",
        "might",
        "what",
        "why",
        "how",
        "when",
        "where",
        "who",
        "which",
        "s",
        "t",
        "m",
        "re",
        "ve",
        "ll",
        "d",
        "not",
        "no",
        "there",
        "about",
        "any",
        "some",
        "get",
        "please",
    ]
)

_MAX_WORDS = 200_000
"""The most words that are counted. Beyond it counts are halved and words seen once are forgotten, so that gibberish
can't fill the memory.
"""

WORD_FEATURES = 13
"""Number of features that `Vocabulary.compare` returns."""


_OTHER_SCRIPT = re.compile(r"[\u0370-\u1dff\u1f00-\u1fff\u2c00-\ufaff\U00010000-\U0003ffff]")
"""Greek, Cyrillic and what comes after them; Latin letters of any kind are not in it."""


class Wording:
    """One question's words."""

    __slots__ = ("bigrams", "content", "foreign", "negated", "numbers", "opener", "tokens", "trigrams")

    def __init__(self, text: str) -> None:
        text = text.lower() if text.isascii() else unicodedata.normalize("NFC", text.lower())
        for short, long in _SHORT:
            text = text.replace(short, long)
        self.tokens = [intern(token) for token in _TOKEN.findall(text)]
        self.content = frozenset(token for token in self.tokens if token not in STOP_WORDS)
        self.foreign = frozenset() if text.isascii() else frozenset(filter(_OTHER_SCRIPT.search, self.tokens))
        """Words in another script than Latin."""
        self.negated = len([token for token in self.tokens if token in NEGATIONS]) % 2 == 1
        self.numbers = frozenset(token for token in self.tokens if token[0].isdigit())
        self.opener = next((token for token in self.tokens if token in QUESTION_WORDS), "")
        self.bigrams = frozenset(zip(self.tokens, self.tokens[1:], strict=False))
        joined = " ".join(self.tokens)
        self.trigrams = frozenset(map("".join, zip(joined, joined[1:], joined[2:], strict=False)))


@lru_cache(16_384)
def wording_of(text: str) -> Wording:
    """A text's wording; those read recently are kept."""
    return Wording(text)


class Vocabulary:
    """Counts in how many questions each word was seen; a rare word that two questions share counts most."""

    def __init__(self) -> None:
        self._seen_in: dict[str, int] = {}
        self._texts = 0

    def __len__(self) -> int:
        return len(self._seen_in)

    @classmethod
    def of(cls, seen_in: dict[str, int], texts: int) -> Vocabulary:
        """A vocabulary with those counts of questions per word, out of `texts` questions."""
        made = cls()
        made._seen_in, made._texts = seen_in, texts
        return made

    def counts(self) -> tuple[list[str], list[int], int]:
        """The words, in how many questions each was seen, and how many questions there were."""
        return list(self._seen_in), list(self._seen_in.values()), self._texts

    def learn(self, wording: Wording) -> None:
        """Count one question."""
        self._texts += 1
        for word in wording.content:
            self._seen_in[word] = self._seen_in.get(word, 0) + 1
        if len(self._seen_in) > _MAX_WORDS:
            self._texts //= 2
            self._seen_in = {word: count // 2 for word, count in self._seen_in.items() if count > 1}

    def rarity(self, word: str) -> float:
        """Inverse document frequency, smoothed."""
        return math.log((self._texts + 1) / (self._seen_in.get(word, 0) + 1))

    def compare(self, asked: Wording, held: Wording, known: dict[str, int]) -> list[float]:
        """Features of how similar two questions are, and of how new the asked one's words are to a class with words
        `known`; WORD_FEATURES numbers.
        """
        rarity = {word: self.rarity(word) for word in asked.content | held.content}
        union = sum(rarity.values())
        shared = sum(rarity[word] for word in asked.content & held.content)
        only_asked = max((rarity[word] for word in asked.content - held.content), default=0.0)
        only_held = max((rarity[word] for word in held.content - asked.content), default=0.0)
        asked_total = sum(rarity[word] for word in asked.content) + 1e-9
        unseen = [rarity[word] for word in asked.content if word not in known]
        settled = sum(rarity[word] * min(1.0, known.get(word, 0) / 3) for word in asked.content)
        longest = max(len(asked.tokens), len(held.tokens), 1)
        return [
            shared / union if union else 1.0,
            _overlap(asked.trigrams, held.trigrams),
            _overlap(asked.bigrams, held.bigrams),
            min(only_asked, only_held),
            max(only_asked, only_held),
            float(asked.negated != held.negated),
            float(asked.numbers != held.numbers),
            float(asked.opener != held.opener),
            abs(len(asked.tokens) - len(held.tokens)) / longest,
            max(unseen, default=0.0),
            sum(unseen) / asked_total,
            settled / asked_total,
            float(not asked.content),
        ]


def _overlap(one: frozenset[object] | frozenset[str], other: frozenset[object] | frozenset[str]) -> float:
    return len(one & other) / max(1, len(one | other))
