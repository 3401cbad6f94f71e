"""Pairs of questions whose vectors are close although their meanings differ."""

from __future__ import annotations

import pytest

from cache.guard import contradiction
from cache.words import Vocabulary, Wording

OPPOSED = [
    ("cheap flights from New York to Florida", "cheap flights from Florida to New York", "direction"),
    ("is it safe to fly while pregnant", "is it unsafe to fly while pregnant", "polarity"),
    ("how do I turn dark mode on", "how do I turn dark mode off", "polarity"),
    ("enable two-factor authentication", "disable two-factor authentication", "polarity"),
    ("what is 12 plus 30", "what is 12 plus 31", "number"),
    ("set an alarm for five", "set an alarm for six", "number"),
    ("should I take aspirin", "should I not take aspirin", "negation"),
    ("Can I return this item?", "Can't I return this item?", "negation"),
    ("how many dollars is a kilo of gold", "how many euros is a kilo of gold", "kind"),
    ("weather on monday", "weather on tuesday", "kind"),
    ("What is the capital of France?", "What is the capital of Spain?", "entity"),
    ("Who is the CEO of Apple?", "Who is the CEO of Microsoft?", "entity"),
    ("how do I sort a list in python", "how do I sort a list in java", "kind"),
    ("convert pounds to kilos", "convert kilos to pounds", "direction"),
    ("can I deposit cash at an atm", "can I withdraw cash at an atm", "polarity"),
    ("how to deposit a check", "how to withdraw a check", "polarity"),
    ("what was the highest temperature", "what was the lowest temperature", "polarity"),
    ("reset password without email", "reset password with email", "negation"),
    ("did Germany beat Brazil", "did Brazil beat Germany", "direction"),
    ("interest rate of 3.5 percent", "interest rate of 35 percent", "number"),
    ("what is 12 - 7", "what is 12 + 7", "sign"),
    ("what is -5 squared", "what is 5 squared", "sign"),
    ("How do I sort a list in C?", "How do I sort a list in C++?", "sign"),
    ("is 3 < 5", "is 3 > 5", "sign"),
    ("what does == do in javascript", "what does === do in javascript", "sign"),
    ("convert $100 to yen", "convert €100 to yen", "sign"),
    ("def f(x): return x+1", "def f(x): return x-1", "sign"),
    ("chmod +x file", "chmod -x file", "sign"),
    ("what is 12 - 7", "what is 7 - 12", "direction"),
    ("10% of 50", "50% of 10", "direction"),
    ("rm -r folder", "rm -f folder", "entity"),
    ("is vitamin b good for me", "is vitamin c good for me", "entity"),
    ("take 100 mg of it", "take 100 ml of it", "kind"),
    ("git reset --hard", "git reset --soft", "polarity"),
    ("Kann ich den Artikel zurückgeben", "Kann ich den Artikel nicht zurückgeben", "negation"),
    ("Puis-je fumer ici", "Ne puis-je pas fumer ici", "negation"),
]
ALIKE = [
    ("how do I enable 2FA", "how to turn on 2FA"),
    ("best restaurants in Paris", "good places to eat in Paris"),
    ("I still haven't received my card", "where is my new card"),
    ("What is the capital of France?", "what's the capital city of France"),
    ("Can I get a refund?", "is it possible to get my money back"),
    ("how many people live in 1,000 islands", "how many people live in 1000 islands"),
    ("Which ATM can I use?", "which ATMs can I use"),
    ("Reset e-mail", "reset my email!"),
    ("R&D budget - how large is it?", "how large is the R and D budget"),
    ("ouvert le café?", "le caf\u00e9 est ouvert"),
]


def objection(one: str, other: str) -> str | None:
    """The guard's objection to a pair of questions, or None."""
    return contradiction(one, other, Wording(one), Wording(other))


@pytest.mark.parametrize(("one", "other", "why"), OPPOSED)
def test_changed_meanings_are_named(one: str, other: str, why: str) -> None:
    """A pair in which one word changes the meaning has a named objection, in either order."""
    assert objection(one, other) == why == objection(other, one)


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_paraphrases_pass(one: str, other: str) -> None:
    """Paraphrases have no objection: the learned rule decides about them."""
    assert objection(one, other) is None is objection(other, one)


def test_a_question_never_contradicts_itself() -> None:
    """A question compared with itself has no objection."""
    for pair in OPPOSED:
        for text in pair[:2]:
            assert objection(text, text) is None


def test_an_accent_is_read_alike_however_it_is_written() -> None:
    """Composed and decomposed accents are the same word."""
    assert Wording("caf\u00e9 à Paris").tokens == Wording("cafe\u0301 a\u0300 Paris").tokens


def test_rare_words_count_more() -> None:
    """A word that every question contains separates less than a word that is new."""
    words = Vocabulary()
    for n in range(50):
        words.learn(Wording(f"card number{n}"))
    assert words.rarity("card") < 0.1 < words.rarity("mortgage")
    common = words.compare(Wording("card mortgage"), Wording("mortgage"), {})
    rare = words.compare(Wording("card mortgage"), Wording("card"), {})
    assert common[0] > 0.9 > 0.1 > rare[0]


def test_words_new_to_a_class_raise_its_novelty() -> None:
    """A question with a word that no question of the class has contained is more novel than one without."""
    words = Vocabulary()
    for n in range(10):
        words.learn(Wording("lost card" if n % 2 else "other thing"))
    known = {"lost": 5, "card": 9}
    held = Wording("lost card")
    assert words.compare(Wording("lost card"), held, known)[9:12] == [0.0, 0.0, pytest.approx(1.0)]
    new = words.compare(Wording("lost luggage"), held, known)
    assert new[9] > 1 and new[10] > 0.7


def test_the_vocabulary_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many words are seen once, the vocabulary stays bounded and keeps the common words."""
    monkeypatch.setattr("cache.words._MAX_WORDS", 100)
    words = Vocabulary()
    for n in range(1000):
        words.learn(Wording(f"card {'xyzw'[n % 4] * (n // 4 + 2)}"))
    assert len(words) <= 100
    assert words.rarity("card") < 0.5 < words.rarity("mortgage")
