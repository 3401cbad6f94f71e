"""A lexical guard against wrong answers to questions whose vectors are close.

A guard only refuses. It knows some ways in which two nearly equal questions need different answers: numbers, signs (of
arithmetic, code and money), negation, opposites, names, single letters and direction. All else is left to the learned
rule.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

from cache.words import NEGATIONS, STOP_WORDS, Wording

_OPPOSITES = """
on/off enable/disable enabled/disabled enabling/disabling activate/deactivate safe/unsafe safe/dangerous
open/close opened/closed start/stop begin/end add/remove add/delete create/delete install/uninstall
increase/decrease increasing/decreasing raise/lower higher/lower highest/lowest high/low more/less most/least
maximum/minimum max/min up/down left/right before/after first/last early/late earliest/latest oldest/newest
old/new buy/sell buying/selling bought/sold lend/borrow send/receive sent/received deposit/withdraw
deposit/withdrawal import/export upload/download login/logout lock/unlock locked/unlocked block/unblock
freeze/unfreeze subscribe/unsubscribe accept/reject accept/decline approve/reject approve/deny allow/deny
allow/forbid allowed/forbidden legal/illegal possible/impossible true/false yes/no right/wrong correct/incorrect
good/bad best/worst better/worse advantage/disadvantage advantages/disadvantages benefit/risk benefits/risks
pros/cons positive/negative win/lose won/lost gain/lose profit/loss love/hate like/dislike male/female
man/woman men/women boy/girl boys/girls husband/wife father/mother mother/dad son/daughter brother/sister
he/she him/her his/her hot/cold warm/cold hotter/colder fast/slow faster/slower cheap/expensive
cheapest/expensive strong/weak easy/hard easy/difficult easier/harder rich/poor big/small large/small
larger/smaller biggest/smallest largest/smallest long/short longest/shortest tall/short heavy/light
inside/outside indoor/outdoor internal/external public/private visible/hidden show/hide connect/disconnect
join/leave arrive/depart arrival/departure arrivals/departures encrypt/decrypt encode/decode compress/extract
increment/decrement ascending/descending asc/desc cause/prevent causes/prevents cause/cure helpful/harmful
always/never with/without include/exclude including/excluding above/below over/under push/pull
vegetarian/meat alive/dead day/night morning/evening am/pm north/south east/west summer/winter
teacher/student employer/employee doctor/patient parent/child landlord/tenant introvert/extrovert
liberal/conservative debit/credit accepted/declined income/expense asset/liability assets/liabilities
ios/android windows/mac windows/linux front/back top/bottom full/empty wet/dry hard/soft plus/minus
multiply/divide multiplied/divided
"""

_KINDS = """
monday tuesday wednesday thursday friday saturday sunday
january february march april june july august september october november december
dollar dollars usd/euro euros eur/pound pounds gbp/yen jpy/rupee rupees inr/yuan rmb/peso pesos/franc francs
kg kilogram kilograms kilo/lb lbs pound pounds/gram grams/ounce ounces oz/ton tons
km kilometer kilometers kilometre/mile miles/meter meters metre metres/foot feet ft/inch inches/cm/yard yards
celsius centigrade/fahrenheit/kelvin
mcg microgram micrograms/mg milligram milligrams/ml milliliter milliliters millilitre millilitres
second seconds/minute minutes/hour hours/day days/week weeks/month months/year years
yesterday/today/tomorrow/tonight
breakfast/lunch/dinner
red/blue/green/yellow/black/white/purple/orange/pink/brown
english/spanish/french/german/italian/portuguese/chinese/japanese/korean/russian/arabic/hindi/dutch
python/java/javascript/ruby/rust/golang/php/kotlin/swift/perl
visa/mastercard/amex
"""

_NUMBER_WORDS = {
    word: str(number)
    for number, word in enumerate(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
    )
    if number != 1  # "one" is more often a pronoun
}
_TURNS = frozenset(
    [
        "to",
        "into",
        "from",
        "than",
        "before",
        "after",
        "over",
        "versus",
        "vs",
        "beat",
        "beats",
        "defeat",
        "by",
        "for",
        "against",
    ]
)
_KEPT = 8192
"""Number of texts whose numbers, kinds, directions and names are remembered, since a cached question is compared often.
"""
_SIGNS = re.compile(r"[+*<>=^%$|~]+|&&|(?<=\w)#|!(?=[\w(=])|(?<![^\W\d_])-(?=\s*[\d.(])|[^\x00-\x7f]")
"""A hyphen between letters is no sign, nor is other punctuation."""
_SIGN_CATEGORIES = ("Sm", "Sc")
_NAME = re.compile(r"(?<![.!?] )(?<!^)\b[A-Z][\w’'.+#-]*")


def _opposites() -> dict[str, frozenset[str]]:
    """Each word's opposites."""
    found: dict[str, set[str]] = {}
    for pair in _OPPOSITES.split():
        one, other = pair.split("/")
        found.setdefault(one, set()).add(other)
        found.setdefault(other, set()).add(one)
    return {word: frozenset(others) for word, others in found.items()}


def _kinds() -> dict[str, tuple[int, int]]:
    """Word -> (kind, member): two members of one kind never mean the same."""
    found: dict[str, tuple[int, int]] = {}
    for kind, line in enumerate(_KINDS.strip().splitlines()):
        members = line.split("/") if "/" in line else line.split()
        for number, member in enumerate(members):
            found.update(dict.fromkeys(member.split(), (kind, number)))
    return found


OPPOSITES = _opposites()
KINDS = _kinds()


@dataclass(frozen=True, slots=True)
class Guard:
    """Decides whether one question may be answered with another's answer."""

    same_script: bool = False
    """Whether words in other scripts than Latin must be equal, because the embedder knows little of them."""

    def objection(self, asked: str, held: str, one: Wording, other: Wording) -> str | None:
        """The name of what sets the asked and the cached question apart; None where nothing is known to."""
        if self.same_script and one.foreign != other.foreign:
            return "script"
        return contradiction(asked, held, one, other)


def contradiction(asked: str, held: str, one: Wording, other: Wording) -> str | None:
    """Name what sets two questions apart: number, sign, negation, polarity, kind, direction or entity; else None."""
    ours, theirs = _numbers(one), _numbers(other)
    if ours != theirs and ((ours and theirs) or _alike(one, other)):
        return "number"
    signs, others = _signs(asked), _signs(held)
    if signs != others and ((signs and others) or _alike(one, other)):
        return "sign"
    if one.negated != other.negated and _alike(one, other):
        return "negation"
    if _opposed(one, other):
        return "polarity"
    if _of_other_kind(one, other):
        return "kind"
    if _turned(one, other) or _renumbered(one, other):
        return "direction"
    return "entity" if _other_names(asked, held, one, other) or _other_letters(one, other) else None


def _alike(one: Wording, other: Wording) -> bool:
    """Whether the two questions differ in a word or two only, so that one more word may change the meaning."""
    ours, theirs = one.content - NEGATIONS - one.numbers, other.content - NEGATIONS - other.numbers
    return 2 * len(ours & theirs) >= len(ours | theirs)


@lru_cache(_KEPT)
def _numbers(wording: Wording) -> frozenset[str]:
    spelt = {_NUMBER_WORDS[token] for token in wording.tokens if token in _NUMBER_WORDS}
    return frozenset(number.strip(".,:").replace(",", "") for number in wording.numbers) | spelt


@lru_cache(_KEPT)
def _signs(text: str) -> tuple[str, ...]:
    """The signs of a text in their order. They tell 7 - 2 from 7 + 2 and C from C++, which words do not."""
    found = _SIGNS.findall(text)
    return tuple(sign for sign in found if sign.isascii() or unicodedata.category(sign) in _SIGN_CATEGORIES)


def _opposed(one: Wording, other: Wording) -> bool:
    ours, theirs = frozenset(one.tokens), frozenset(other.tokens)
    for word in ours - theirs:
        opposites = OPPOSITES.get(word)
        if opposites and not opposites.isdisjoint(theirs - ours):
            return True
    return False


def _of_other_kind(one: Wording, other: Wording) -> bool:
    ours, theirs = _members(one), _members(other)
    return any(kind in theirs and theirs[kind].isdisjoint(members) for kind, members in ours.items())


@lru_cache(_KEPT)
def _members(wording: Wording) -> dict[int, set[int]]:
    found: dict[int, set[int]] = {}
    for token in wording.tokens:
        kind = KINDS.get(token)
        if kind is not None:
            found.setdefault(kind[0], set()).add(kind[1])
    return found


def _turned(one: Wording, other: Wording) -> bool:
    """Whether "A to B" of one question is "B to A" in the other."""
    theirs = _turns(other)
    return any(
        turn == again and not left.isdisjoint(after) and not right.isdisjoint(before)
        for turn, left, right in _turns(one)
        for again, before, after in theirs
    )


def _renumbered(one: Wording, other: Wording) -> bool:
    """Whether the same words are about the same numbers the other way round."""
    if len(one.numbers) < 2 or one.numbers != other.numbers or one.content != other.content:
        return False
    ours, theirs = ([token for token in wording.tokens if token in wording.numbers] for wording in (one, other))
    return ours != theirs and sorted(ours) == sorted(theirs)


@lru_cache(_KEPT)
def _turns(wording: Wording) -> list[tuple[str, frozenset[str], frozenset[str]]]:
    """Each word that gives a direction, with the two content words before and after it."""
    found = []
    for place, token in enumerate(wording.tokens):
        if token in _TURNS:
            left, right = _nearest(wording.tokens[:place][::-1]), _nearest(wording.tokens[place + 1 :])
            if not left & right:
                found.append((token, left, right))
    return found


def _nearest(tokens: list[str]) -> frozenset[str]:
    return frozenset([token for token in tokens if token not in STOP_WORDS][:2])


def _other_names(asked: str, held: str, one: Wording, other: Wording) -> bool:
    """Whether each names something the other does not mention at all."""
    ours = names(asked) - frozenset(map(_singular, other.tokens))
    theirs = names(held) - frozenset(map(_singular, one.tokens))
    return bool(ours) and bool(theirs)


def _other_letters(one: Wording, other: Wording) -> bool:
    """Whether each has a letter by itself, as in plan B or `-f`, that the other has not."""
    ours, theirs = _letters(one), _letters(other)
    return not ours <= theirs and not theirs <= ours


@lru_cache(_KEPT)
def _letters(wording: Wording) -> frozenset[str]:
    return frozenset(token for token in wording.content if len(token) == 1 and token.isalpha() and token.isascii())


def _singular(token: str) -> str:
    return token[:-1] if len(token) > 3 and token.endswith("s") else token


@lru_cache(_KEPT)
def names(text: str) -> frozenset[str]:
    """Words in capitals that do not begin a sentence, as tokens without a plural's s."""
    spans = [match.group() for match in _NAME.finditer(text)]
    return frozenset(_singular(token) for span in spans for token in Wording(span).content)
