"""Budgets in one process: what is held, settled and given back always adds up."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from gateway.errors import BudgetsAway, HeadgateError, OverBudget
from gateway.money.ledger import Account, Joined, MemoryHold, MemoryLedger, period_end, period_start

KEY = Account("key:a", 1000, "day")
ROUTE = Account("route:r", 700, "total")
TENANT = Account("tenant:t", None, "month")
ACCOUNTS = (KEY, ROUTE, TENANT)
DAY_S = 86_400.0
NOON = 1_700_049_600.0
"""Wednesday 15 November 2023, 12:00 UTC."""


class Clock:
    def __init__(self, now: float = NOON) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Interleavings(RuleBasedStateMachine):
    """Any order of holds, shrinks, settlements (also repeated ones) and passing days agrees with a plain model."""

    holds = Bundle("holds")

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.ledger = MemoryLedger(self.clock)
        self.open: dict[MemoryHold, tuple[tuple[Account, ...], int]] = {}
        self.spent = dict.fromkeys(ACCOUNTS, 0)
        self.overrun = 0

    @rule(target=holds, accounts=st.sets(st.sampled_from(ACCOUNTS)), amount=st.integers(0, 900))
    def hold(self, accounts: set[Account], amount: int) -> MemoryHold | None:
        fits = all(
            one.limit_nanousd is None or self.spent[one] + self.held(one) + amount <= one.limit_nanousd
            for one in accounts
        )
        try:
            hold = self.ledger.hold_now(tuple(accounts), amount)
        except OverBudget:
            assert not fits
            return None
        assert fits
        self.open[hold] = (tuple(accounts), amount)
        return hold

    @rule(hold=holds, share=st.floats(0, 1))
    def shrink(self, hold: MemoryHold | None, share: float) -> None:
        if hold in self.open:
            accounts, amount = self.open[hold]
            hold.shrink(int(amount * share))
            self.open[hold] = (accounts, int(amount * share))

    @rule(hold=consumes(holds), amount=st.integers(0, 1200))
    def settle(self, hold: MemoryHold | None, amount: int) -> None:
        if hold is None:
            return
        accounts, held = self.open.pop(hold)
        assert hold.settle(amount) is True
        assert hold.settle(amount) is False and hold.settle(0) is False
        for account in accounts:
            self.spent[account] += amount
        self.overrun += max(0, amount - held)

    @rule()
    def next_day(self) -> None:
        self.clock.now += DAY_S
        self.spent[KEY] = 0
        if period_start("month", self.clock.now) > self.clock.now - DAY_S:
            self.spent[TENANT] = 0

    def held(self, account: Account) -> int:
        return sum(amount for accounts, amount in self.open.values() if account in accounts)

    @invariant()
    def adds_up(self) -> None:
        for account in ACCOUNTS:
            assert self.ledger.balance(account) == (self.spent[account], self.held(account))
        assert self.ledger.outstanding == len(self.open)
        assert self.ledger.overrun_nanousd == self.overrun

    def teardown(self) -> None:
        for hold in list(self.open):
            hold.settle(0)
        assert [self.ledger.balance(account)[1] for account in ACCOUNTS] == [0, 0, 0]
        assert self.ledger.outstanding == 0


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


async def test_a_refusal_touches_no_account() -> None:
    """Where the second of two accounts refuses, nothing is held in the first."""
    ledger = MemoryLedger(Clock())
    with pytest.raises(OverBudget, match=r"route 'r' is \$0.0000007: "):
        await ledger.hold((KEY, ROUTE), 800)
    assert ledger.balance(KEY) == (0, 0)
    assert ledger.outstanding == 0


async def test_a_refusal_says_whether_waiting_may_help() -> None:
    """A refusal has a retry-after only where holds in flight are in the way."""
    ledger = MemoryLedger(Clock())
    hold = await ledger.hold((KEY,), 900)
    with pytest.raises(OverBudget) as refused:
        await ledger.hold((KEY,), 200)
    assert refused.value.retry_after_s == 1.0
    assert refused.value.status == 429
    hold.settle(900)
    with pytest.raises(OverBudget) as refused:
        await ledger.hold((KEY,), 200)
    assert refused.value.retry_after_s is None


async def test_what_the_journal_remembers_is_spent() -> None:
    """A restart forgets no spending, and takes over none of a period that has ended since."""
    clock = Clock()
    ledger = MemoryLedger(clock)
    other = Account("key:b", 1000, "day")
    ledger.restore({"key:a": 950, "key:b": 950, "route:r": 300})
    with pytest.raises(OverBudget):
        await ledger.hold((KEY,), 51)
    clock.now += DAY_S
    assert (await ledger.hold((KEY, other, ROUTE), 400)).nanousd == 400
    assert ledger.balance(ROUTE) == (300, 400)


async def test_a_clock_that_jumps_ahead_and_back_gives_no_budget_twice() -> None:
    """The next day's budget, which was given too early, is the only one until that day's end."""
    clock = Clock()
    ledger = MemoryLedger(clock)
    ledger.hold_now((KEY,), 1000).settle(1000)
    clock.now += DAY_S
    ledger.hold_now((KEY,), 600).settle(600)
    clock.now -= DAY_S
    assert ledger.balance(KEY) == (600, 0)
    clock.now += DAY_S
    with pytest.raises(OverBudget):
        await ledger.hold((KEY,), 401)
    clock.now += DAY_S
    assert ledger.balance(KEY) == (0, 0)


def test_what_ends_after_midnight_is_spent_on_the_day_that_begins() -> None:
    """A request that ends after midnight is booked on the new day, even if it is the account's first that day."""
    clock = Clock()
    ledger = MemoryLedger(clock)
    ledger.hold_now((KEY,), 700).settle(700)
    late = ledger.hold_now((KEY,), 300)
    clock.now += DAY_S
    late.settle(250)
    assert ledger.balance(KEY) == (250, 0)


async def test_until_the_journal_answers_nothing_is_held_of_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past spending counts from the first hold on; accounts without a budget don't wait for it."""
    monkeypatch.setattr("gateway.money.ledger.RECALL_EVERY_S", 0.01)
    answers: list[dict[str, int]] = []

    def recall() -> tuple[dict[str, int], set[Account]]:
        if not answers:
            raise HeadgateError("the database is away", status=503)
        return answers[0], {KEY}

    ledger = MemoryLedger(Clock())
    ledger.recall = recall
    chore = asyncio.create_task(ledger.run())
    with pytest.raises(BudgetsAway) as refused:
        await ledger.hold((KEY, ROUTE), 1)
    assert (refused.value.status, refused.value.retry_after_s, ledger.outstanding) == (503, 0.01, 0)
    (await ledger.hold((Account("key:free", None),), 10**12)).settle(0)
    answers.append({"key:a": 950})
    await chore
    with pytest.raises(OverBudget):
        await ledger.hold((KEY,), 51)
    assert (await ledger.hold((KEY,), 50)).nanousd == 50


@pytest.mark.parametrize("wrong", [-1, -(10**12)])
async def test_negative_money_is_refused(wrong: int) -> None:
    """Negative amounts can't be held or spent."""
    ledger = MemoryLedger(Clock())
    with pytest.raises(ValueError):
        await ledger.hold((KEY,), wrong)
    hold = await ledger.hold((KEY,), 10)
    for act in (hold.settle, hold.shrink):
        with pytest.raises(ValueError):
            act(wrong)
    assert ledger.balance(KEY) == (0, 10)


def test_a_hold_grows_by_nothing() -> None:
    """Shrinking a hold to more than it has raises ValueError."""
    with pytest.raises(ValueError):
        MemoryLedger(Clock()).hold_now((KEY,), 10).shrink(11)


@pytest.mark.parametrize("spent", [0, 4, 10, 12, 15, 20])
@pytest.mark.parametrize("shrunk", [15, 12, 7, 0])
def test_two_holds_of_a_request_are_one(shrunk: int, spent: int) -> None:
    """Joined holds book what was spent once, and record an overrun."""
    ledger = MemoryLedger(Clock())
    both = Joined(ledger.hold_now((KEY,), 10), ledger.hold_now((KEY, TENANT), 5))
    for wrong in (-1, both.nanousd + 1):
        with pytest.raises(ValueError):
            both.shrink(wrong)
    both.shrink(shrunk)
    assert both.nanousd == shrunk and ledger.balance(KEY) == (0, shrunk)
    with pytest.raises(ValueError):
        both.settle(-1)
    assert both.settle(spent) and not both.settle(spent) and not both.settle(0)
    assert ledger.balance(KEY) == (spent, 0) and ledger.overrun_nanousd == max(0, spent - shrunk)
    assert (both.nanousd, ledger.outstanding) == (0, 0)


@pytest.mark.parametrize(
    ("period", "start", "end"),
    [
        ("day", 1_700_006_400.0, 1_700_092_800.0),
        ("week", 1_699_833_600.0, 1_700_438_400.0),
        ("month", 1_698_796_800.0, 1_701_388_800.0),
    ],
)
def test_periods_begin_at_midnight_utc(period: str, start: float, end: float) -> None:
    """Days, weeks (on Monday) and months (on the first) begin at midnight UTC."""
    for now in (start, NOON + 0.5, end - 1e-3):
        assert period_start(period, now) == start  # type: ignore[arg-type]
        assert period_end(period, now) == end  # type: ignore[arg-type]
    assert period_start(period, end) == end  # type: ignore[arg-type]


def test_a_total_never_ends() -> None:
    """The period "total" begins at 0 and never ends."""
    assert (period_start("total", NOON), period_end("total", NOON)) == (0.0, float("inf"))
