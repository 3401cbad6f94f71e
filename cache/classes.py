"""Classes of entries whose answers were judged equal, with the words of their questions."""

from __future__ import annotations

from itertools import count

from cache.words import Wording

_serials = count()


class AnswerClass:
    """One answer, however it was asked for. Merged classes point to the one they were merged into."""

    __slots__ = ("_apart", "_into", "_serial", "right", "size", "words", "wrong")

    def __init__(self) -> None:
        self.size = 0
        self.words: dict[str, int] = {}
        """Number of its questions in which each word occurs."""
        self.right = 0
        self.wrong = 0
        self._into: AnswerClass | None = None
        self._apart: set[int] | None = None
        self._serial = next(_serials)

    def root(self) -> AnswerClass:
        """The class this one is part of by now."""
        found = self
        while found._into is not None:
            found = found._into
        if self is not found:
            self._into = found
        return found

    def join(self, wording: Wording) -> None:
        """Add a question to the class."""
        self.size += 1
        for word in wording.content:
            self.words[word] = self.words.get(word, 0) + 1

    def part(self, wording: Wording) -> None:
        """Remove a question from the class."""
        self.size -= 1
        for word in wording.content:
            left = self.words.get(word, 0) - 1
            if left > 0:
                self.words[word] = left
            else:
                self.words.pop(word, None)

    def count(self, right: bool) -> None:
        """Remember a verdict on an answer of this class."""
        self.right += right
        self.wrong += not right

    def merge(self, other: AnswerClass) -> None:
        """Make two classes one."""
        small, large = sorted((self.root(), other.root()), key=lambda found: found.size)
        if small is large:
            return
        large.size += small.size
        large.right += small.right
        large.wrong += small.wrong
        for word, questions in small.words.items():
            large.words[word] = large.words.get(word, 0) + questions
        if small._apart:
            large._apart = (large._apart or set()) | small._apart
        small.words, small._apart = {}, None
        small._into = large

    def tell_apart(self, other: AnswerClass) -> None:
        """Remember that two classes were judged to be different."""
        one, two = self.root(), other.root()
        one._apart = (one._apart or set()) | {two._serial}
        two._apart = (two._apart or set()) | {one._serial}

    def may_be(self, other: AnswerClass) -> bool:
        """Whether two classes may turn out to be one, as far as anyone has judged."""
        one, two = self.root(), other.root()
        return one is not two and two._serial not in (one._apart or ()) and one._serial not in (two._apart or ())
