"""Batch prompting: small independent questions to one model are sent in one call where their route allows it.

A question waits a few milliseconds for others of its kind: of the same route, model and tenant, with the same system
prompt and settings. If none comes, it is sent as it is. In a group each question has an attempt of its own, with its
share of the call's tokens and cost. Where the reply doesn't say unambiguously which answer belongs to which question,
or the call is refused, all of the attempts have failed, and each question is then sent by itself.

Never grouped are streams, tools, images, forced formats, several turns, several samples, answers whose confidence is
read, and questions of different tenants.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec
from msgspec.structs import astuple, replace

from cascade.batch_prompting import EXTRA_OUTPUT_TOKENS, apart, instruction, may_stand, shares, together
from cascade.types import Rung
from gateway.attempt import Opened, Sender
from gateway.call import Arrival, read_call
from gateway.errors import UpstreamError
from gateway.evidence import evidence_of
from gateway.exchange import Attempt, Exchange, Kept
from gateway.fleet import Deployment
from gateway.money.charge import CHARS_PER_TOKEN
from gateway.money.prices import Price
from gateway.wire.describe import MOST_OUTPUT_TOKENS
from gateway.wire.peek import peek
from gateway.wire.usage import Usage

SAME = frozenset(
    {"temperature", "top_p", "presence_penalty", "frequency_penalty", "reasoning_effort", "service_tier", "user"}
)
"""Settings that grouped questions must share to the byte; a question with any other field is never grouped."""
LIMITS = ("max_completion_tokens", "max_tokens")
_OURS = frozenset({"model", "messages", "stream", *LIMITS})
PROMPT = frozenset(
    {"input_tokens", "cache_read_tokens", "cache_write_tokens", "cache_write_1h_tokens", "audio_input_tokens"}
)
REFUSED = ("rejected", "context_length", "unsupported")
"""Failures that may be the fault of another question of the group, or of their sum."""
UNBOUNDED = 1 << 60


class _Turn(msgspec.Struct, forbid_unknown_fields=True):
    role: str
    content: str


_read_turns = msgspec.json.Decoder(list[_Turn]).decode


class Kind(msgspec.Struct, frozen=True):
    """What questions must have in common to be grouped."""

    route: str
    model: str
    tenant: str
    role: str
    system: str
    limit: str
    """Name of the field that limits the answer's length; empty where there is none."""
    settings: tuple[tuple[str, bytes], ...]


@dataclass(slots=True, eq=False)
class Asked:
    """One question in a group."""

    exchange: Exchange
    question: str
    begun_s: float
    ends_s: float
    """Monotonic time of its deadline."""
    answer: asyncio.Future[Opened | None]
    """Its result is None where the question is to be sent by itself."""

    @property
    def limit_tokens(self) -> int:
        return self.exchange.call.described.max_output_tokens or 0


@dataclass(slots=True, eq=False)
class Group:
    """Questions that wait for others, and then for one reply."""

    kind: Kind
    asked: list[Asked] = field(default_factory=list)
    timer: asyncio.TimerHandle | None = None
    task: asyncio.Task[None] | None = None
    deployment: Deployment | None = None
    """The one that is asked; None before the call."""
    left_nanousd: int = 0
    """Nano-dollars charged to questions that left before the reply."""


class QuestionBatcher:
    """The groups of one worker."""

    def __init__(self, sender: Sender, draws: Iterator[float]) -> None:
        self.sender = sender
        self.draws = draws
        self.open: dict[Kind, Group] = {}

    async def ask(self, exchange: Exchange, rung: Rung) -> Opened | None:
        """The answer from a group; None where the question is to be sent by itself. Raises UpstreamError after its
        attempt was recorded in the exchange.
        """
        kind, question = kind_of(exchange, rung)
        if kind is None:
            return None
        now = self.sender.now()
        ends_s = min(now + rung.timeout_s, exchange.call.received_s + exchange.call.timeout_s)
        asked = Asked(exchange, question, now, ends_s, asyncio.get_running_loop().create_future())
        group = self._join(kind, asked)
        try:
            async with asyncio.timeout(ends_s - now):
                return await asked.answer
        except TimeoutError:
            self._leave(group, asked, "timeout")
            raise UpstreamError("timeout", "the call for several questions timed out", status=504) from None
        except asyncio.CancelledError:
            self._leave(group, asked, "cancelled")
            raise

    def _join(self, kind: Kind, asked: Asked) -> Group:
        config = asked.exchange.route.config
        group = self.open.get(kind)
        if group is None:
            group = self.open[kind] = Group(kind)
            group.timer = asyncio.get_running_loop().call_later(config.gather_ms / 1e3, self._send, group)
        group.asked.append(asked)
        if len(group.asked) >= config.gather_most:
            self._send(group)
        return group

    def _send(self, group: Group) -> None:
        """Send the group, because its time is over or it is full."""
        if self.open.get(group.kind) is not group:
            return
        del self.open[group.kind]
        assert group.timer is not None
        group.timer.cancel()
        if len(group.asked) == 1:
            group.asked[0].answer.set_result(None)
        else:
            group.task = asyncio.ensure_future(self._ask_together(group))

    def _leave(self, group: Group, asked: Asked, failure: str) -> None:
        """Remove a question from its group. Once the call is made, it is charged with its own prompt tokens, because
        the cost of the reply is not known yet.
        """
        if asked.answer.done() and not asked.answer.cancelled():
            return
        group.asked.remove(asked)
        if (deployment := group.deployment) is not None:
            exchange, now = asked.exchange, self.sender.now()
            attempt = _attempt(asked, deployment, now)
            attempt.failure, attempt.estimated = failure, True
            attempt.usage = Usage(input_tokens=exchange.call.described.input_tokens)
            attempt.cost_nanousd = deployment.price.cost(attempt.usage, exchange.call.described.tier)
            group.left_nanousd += attempt.cost_nanousd
            exchange.attempts.append(attempt)
        if group.asked:
            return
        if group.task is not None:
            group.task.cancel()
        else:
            assert group.timer is not None
            group.timer.cancel()
            del self.open[group.kind]

    async def _ask_together(self, group: Group) -> None:
        """Send the group's call, and give every question that still waits its answer or the error."""
        carrier: Exchange | None = None
        sent = list(group.asked)
        try:
            carrier = self._carrier(group)
            opened = await self._call(carrier, group)
            texts = _texts(opened, len(sent))
        except UpstreamError as error:
            self._failed(group, carrier, error)
        except Exception as error:
            self._failed(group, carrier, UpstreamError("bad_response", f"internal error ({type(error).__name__})"))
            raise
        else:
            if texts is None:
                message = "the reply to several questions does not say which answer belongs to which"
                self._failed(group, carrier, UpstreamError("bad_response", message))
                return
            answers = {id(asked): text for asked, text in zip(sent, texts, strict=True)}
            self._answered(group, opened, [answers[id(asked)] for asked in group.asked])

    async def _call(self, carrier: Exchange, group: Group) -> Opened:
        now, model = self.sender.now(), group.kind.model
        group.deployment = deployment = self.sender.fleet.pick(model, next(self.draws), now)
        if deployment is None:
            raise UpstreamError("unavailable", f"every deployment of {model} is down", status=503)
        left_s = carrier.call.received_s + carrier.call.timeout_s - now
        return await self.sender.open(carrier, Rung(model, True, left_s), deployment, live=False)

    def _carrier(self, group: Group) -> Exchange:
        """The call as an exchange of its own. It is never settled: each question settles its share."""
        first, now = group.asked[0].exchange, self.sender.now()
        ends_s = max(asked.ends_s for asked in group.asked)
        body = msgspec.json.encode(_body(group))
        arrival = Arrival({}, first.call.host, first.call.request_id, now)
        call = read_call("chat", body, arrival, max_messages=2, timeout_s=ends_s - now)
        return Exchange(call, first.caller, first.route, first.decision_id, first.hold, first.taken)

    def _answered(self, group: Group, opened: Opened, texts: list[str]) -> None:
        assert opened.kept is not None
        seen, deployment = opened.kept.seen, opened.deployment
        lengths = [len(text) + CHARS_PER_TOKEN * EXTRA_OUTPUT_TOKENS for text in texts]
        attempts = self._shares(group, opened.attempt, deployment, lengths)
        for place, (asked, text, attempt) in enumerate(zip(group.asked, texts, attempts, strict=True)):
            body = _answer_body(f"{seen.id}-{place + 1}", seen.model, text, attempt.usage)
            own_seen = peek(body, "chat")
            attempt.evidence = evidence_of(own_seen, wants_json=False)
            asked.exchange.response_id = own_seen.id
            if not asked.answer.done():
                asked.answer.set_result(Opened(attempt, deployment, Kept(attempt, "chat", body, own_seen)))

    def _failed(self, group: Group, carrier: Exchange | None, error: UpstreamError) -> None:
        """Give every question its share of the failed call if the call was made, and the error unless it is one that
        the question by itself may not meet.
        """
        if carrier is not None and carrier.attempts and group.deployment is not None:
            whole = carrier.attempts[-1]
            for attempt in self._shares(group, whole, group.deployment, [1] * len(group.asked)):
                attempt.failure = whole.failure or error.failure
        for asked in group.asked:
            if asked.answer.done():
                continue
            if error.failure in REFUSED:
                asked.answer.set_result(None)
            else:
                asked.answer.set_exception(_copy(error))

    def _shares(self, group: Group, whole: Attempt, deployment: Deployment, lengths: list[int]) -> list[Attempt]:
        """The call's attempt divided among the questions that still wait, in their order. `lengths` has the characters
        of each answer.
        """
        usages, costs = _split(group, whole, lengths, deployment.price)
        attempts = []
        for asked, usage, cost_nanousd in zip(group.asked, usages, costs, strict=True):
            attempt = _attempt(asked, deployment, self.sender.now())
            attempt.first_byte_s = attempt.latency_s if whole.first_byte_s is not None else None
            attempt.status, attempt.estimated, attempt.gathered = whole.status, whole.estimated, len(group.asked)
            attempt.usage, attempt.cost_nanousd = usage, cost_nanousd
            asked.exchange.attempts.append(attempt)
            attempts.append(attempt)
        return attempts


def kind_of(exchange: Exchange, rung: Rung) -> tuple[Kind | None, str]:
    """The kind that the question may be grouped by, and its text; None where it can't be grouped."""
    call = exchange.call
    if not _is_plain(exchange, rung) or not call.raw.keys() <= SAME | _OURS:
        return None, ""
    try:
        *system, turn = _read_turns(call.raw["messages"])
    except (msgspec.MsgspecError, ValueError):
        return None, ""
    several = turn.role != "user" or len(system) > 1 or any(one.role not in ("system", "developer") for one in system)
    limit = next((name for name in LIMITS if name in call.raw), "")
    if several or not may_stand(turn.content) or (limit and call.described.max_output_tokens is None):
        return None, ""
    if len(turn.content) > CHARS_PER_TOKEN * exchange.route.config.gather_tokens:
        return None, ""
    settings = tuple(sorted((name, bytes(call.raw[name])) for name in SAME & call.raw.keys()))
    role, prompt = (system[0].role, system[0].content) if system else ("system", "")
    return Kind(exchange.route.name, rung.model, exchange.caller.tenant, role, prompt, limit, settings), turn.content


def _is_plain(exchange: Exchange, rung: Rung) -> bool:
    """Whether it is a single question of the chat API, and the only attempt at it, whose confidence nobody reads."""
    call, asked = exchange.call, exchange.call.described
    first_and_last = rung.final and not exchange.attempts and not rung.reads_confidence and not rung.overrides
    ours = call.surface == "chat" and not call.stream and not call.idempotency_key
    return first_and_last and ours and asked.turns == 1 and asked.n == 1 and not (asked.tools or asked.images)


def _body(group: Group) -> dict[str, object]:
    kind, count = group.kind, len(group.asked)
    system = f"{kind.system}\n\n{instruction(count)}" if kind.system else instruction(count)
    body: dict[str, object] = {
        "model": kind.model,
        "messages": [
            {"role": kind.role, "content": system},
            {"role": "user", "content": together([asked.question for asked in group.asked])},
        ],
        **{name: msgspec.Raw(value) for name, value in kind.settings},
    }
    if kind.limit:
        limit = sum(asked.limit_tokens + EXTRA_OUTPUT_TOKENS for asked in group.asked)
        body[kind.limit] = min(limit, MOST_OUTPUT_TOKENS)
    return body


def _texts(opened: Opened, count: int) -> list[str] | None:
    """The text of each answer in the reply; None where the reply is incomplete or can't be taken apart."""
    assert opened.kept is not None
    seen = opened.kept.seen
    whole = seen.finish_reason == "stop" and not seen.refusal and not seen.tool_names
    return apart(seen.text, count) if whole else None


def _split(group: Group, whole: Attempt, lengths: list[int], price: Price) -> tuple[list[Usage], list[int]]:
    """Each question's usage and nano-dollars of one call. Prompt tokens are divided by the questions' lengths, the
    reply's by the answers' (`lengths`).

    No question pays more than was held for an attempt of its own, as long as the others' holds cover the rest.
    """
    system = len(group.kind.system) // len(group.asked)
    prompts = [len(one.question) + system for one in group.asked]
    columns = [
        shares(tokens, prompts if bucket in PROMPT else lengths, [UNBOUNDED] * len(lengths))
        for bucket, tokens in zip(Usage.__struct_fields__, astuple(whole.usage), strict=True)
        if bucket != "tool_runs"  # questions with tools are never grouped
    ]
    usages = [replace(Usage(*parts), known=True) for parts in zip(*columns, strict=True)]
    most = [one.exchange.worst.get(group.kind.model, UNBOUNDED) for one in group.asked]
    due = max(0, whole.cost_nanousd - group.left_nanousd)
    return usages, shares(due, [price.cost(usage) for usage in usages], most)


def _attempt(asked: Asked, deployment: Deployment, now: float) -> Attempt:
    started_s = asked.begun_s - asked.exchange.call.received_s
    return Attempt(deployment.model, deployment.id, started_s, latency_s=now - asked.begun_s)


def _answer_body(id: str, model: str, text: str, usage: Usage) -> bytes:
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return msgspec.json.encode(
        {"id": id, "object": "chat.completion", "created": int(time.time()), "model": model, "choices": [choice],
         "usage": usage.to_openai()}
    )  # fmt: skip


def _copy(error: UpstreamError) -> UpstreamError:
    """A copy of the error, because each question raises its own."""
    return UpstreamError(
        error.failure, error.message, status=error.status, retry_after_s=error.retry_after_s, body=error.body,
        upstream_status=error.upstream_status,
    )  # fmt: skip
