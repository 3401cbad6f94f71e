"""Questions with known answers, of differing difficulty, for the two shipped models.

Why it exists: the demo, the tests and the training of the shipped models need one source of questions whose
true answers are known, and a hold-out that no training run has seen. An item belongs to the hold-out by the
CRC-32 of its whole meaning (kind and slots), never of a part of it: a split on a part of an item (say a digit
of a sum) would test something else than it trains. Standard library only.
"""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

HELD_OUT_ONE_IN = 10

DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
NUMBER_WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

_BOOKING_PHRASINGS = (
    "book a table for {people} on {day} at {time}",
    "{day} {time}, {people} people please",
    "we are {people} and come {day} around {time}",
    "table {day} {time} for {people}",
    "i need {time} next {day} for {people} guests",
)
_SUM_PHRASINGS = ("{a}+{b} reversed=", "reversed sum of {a} and {b}")
_LARGER_PHRASINGS = ("larger of {a} and {b}?",)


@dataclass(frozen=True, slots=True)
class Question:
    """One question, its kind, and the only right answer."""

    kind: str
    item: str
    """The question's meaning without its wording: what the hold-out is decided by."""
    prompt: str
    answer: str


def booking(rng: random.Random) -> Question:
    """A table booking in one of five wordings, answered as JSON with closed slots: the easy kind."""
    people, day = rng.randint(1, 9), rng.choice(DAYS)
    hour, pm = rng.randint(1, 12), rng.random() < 0.5
    said = rng.choice((str(people), NUMBER_WORDS[people - 1]))
    time = f"{hour}{'pm' if pm else 'am'}"
    prompt = rng.choice(_BOOKING_PHRASINGS).format(people=said, day=day, time=time)
    slots = {"n": people, "day": day[:3], "h": hour % 12 + 12 * pm}
    answer = json.dumps(slots, separators=(",", ":"))
    return Question("booking", f"booking {people} {day} {time}", prompt, answer)


def larger(rng: random.Random) -> Question:
    """The larger of two numbers below 1,000."""
    a, b = _number(rng), _number(rng)
    prompt = rng.choice(_LARGER_PHRASINGS).format(a=a, b=b)
    return Question("larger", f"larger {a} {b}", prompt, str(max(a, b)))


def total(rng: random.Random) -> Question:
    """The sum of two numbers of one to three digits, last digit first: the hard kind.

    Harder the more digits and carries. Last digit first, because that is the order in which carries are
    known.
    """
    a, b = _number(rng), _number(rng)
    prompt = rng.choice(_SUM_PHRASINGS).format(a=a, b=b)
    return Question("total", f"total {a} {b}", prompt, str(a + b)[::-1])


KINDS: dict[str, Callable[[random.Random], Question]] = {
    "booking": booking,
    "larger": larger,
    "total": total,
}


def _number(rng: random.Random) -> int:
    return rng.randrange(10 ** rng.randint(1, 3))


def is_held_out(question: Question) -> bool:
    """True when training never sees this item, in any wording."""
    return zlib.crc32(question.item.encode()) % HELD_OUT_ONE_IN == 0


def draw(kind: str, rng: random.Random, *, held_out: bool) -> Question:
    """One question of `kind` from the hold-out, or from what training may see."""
    while True:
        question = KINDS[kind](rng)
        if is_held_out(question) == held_out:
            return question


def held_out_questions(count: int, seed: int = 0, shares: dict[str, float] | None = None) -> list[Question]:
    """`count` questions no shipped model was trained on, in an order fixed by `seed`.

    `shares` weighs the kinds; without it each kind is as frequent as any other.
    """
    rng = random.Random(seed)
    weights = shares or dict.fromkeys(KINDS, 1.0)
    kinds = rng.choices(list(weights), list(weights.values()), k=count)
    return [draw(kind, rng, held_out=True) for kind in kinds]


def training_questions(kind: str, seed: int) -> Iterator[Question]:
    """Endless questions of one kind, none of them held out."""
    rng = random.Random(f"{kind} {seed}")
    while True:
        yield draw(kind, rng, held_out=False)


def is_right(question: Question, text: str) -> bool:
    """True when `text` is the answer; JSON answers are compared by value, others by their characters."""
    said = text.strip()
    if question.kind != "booking":
        return said == question.answer
    try:
        return bool(json.loads(said) == json.loads(question.answer))
    except json.JSONDecodeError:
        return False
