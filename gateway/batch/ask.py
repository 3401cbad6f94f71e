"""Asks one prompt of a job through the request path of live traffic, and stores its result in one write.

An answer and the decision that paid for it are one record of the spool, so a crash loses both or neither. Before the
call a start record is written: a start without a decision after a crash may have been billed, and counts as spent
(`Jobs.write_off`). Every call has a `Call.idempotency_key`, so that a provider which honours such keys bills and
answers a repeated call only once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from cascade.planner import PlanRequest
from cascade.strategies import TEMPERATURE
from cascade.types import Plan
from cascade.voting import Vote, samples
from gateway.answer import Answering, cost_bound, permit
from gateway.batch.climbs import Climbing, climbing
from gateway.batch.types import Arm, Prompt
from gateway.call import Arrival, Call, read_call
from gateway.errors import CallerError, HeadgateError
from gateway.file_inputs import call_with_files
from gateway.journal.record import DecisionRecord, JobStartRecord, Record
from gateway.journal.spool import Spool
from gateway.keys import Caller
from gateway.reply import Heard
from gateway.routes import Route, RouteBook
from gateway.services import Services
from gateway.wire.errors import render_error
from gateway.wire.file_parts import find
from routers.types import Candidate, Choice, Estimate, Knobs, Query

MAX_TRIES = 5
"""Calls of one prompt before its failure is final."""
MAX_TRIES_BUSY = 40
"""Calls of one prompt before its failure is final where the provider only reports that it is busy (`BUSY`)."""
BUSY = frozenset({429, 503})
MAY_PASS = frozenset({408, 409, 425, 429, 499, 500, 502, 503, 504})
"""HTTP statuses after which the same call may succeed later."""
SPOOL_RETRY_S = 0.5
SENT_BYTES = 2
"""Assumed bytes of the request for each byte of a file, which is sent in base64 or as text in JSON. A text with many
escapes takes more; its call is held for its real size once the file has been read.
"""


@dataclass(frozen=True, slots=True)
class ArmCall:
    """How an arm answers one prompt: its predicted quality and cost, and the models it may escalate to."""

    arm: Arm
    quality: float
    cost_usd: float
    better: tuple[Estimate, ...] = ()
    """Models that may be asked after it, by the rule of the plan's cascade (`arm.rule`) or else by the route's cascade.
    """


@dataclass(slots=True)
class CallResult:
    """The result of one call."""

    place: int
    line: int
    status: int
    """HTTP status as a client would have seen it."""
    body: bytes = b""
    code: str = ""
    cost_nanousd: int = 0
    held: bool = True
    """False where the call was refused before any money was held."""
    final: bool = True
    retry_after_s: float = 0.0
    latency_s: float = 0.0
    model: str = ""
    decision_id: str = ""

    @property
    def ok(self) -> bool:
        return self.status == 200


@dataclass(slots=True)
class PreparedCall:
    """A prompt that is ready to be asked."""

    prompt: Prompt
    worst_nanousd: int
    """Worst-case cost, for which money is held; files that the prompt names are estimated by their sizes."""
    call: Call | None
    route: Route | None
    error: HeadgateError | None = None
    """Why it can't be asked at all; `call` and `route` are then None."""
    names_files: bool = False
    """Whether it names uploaded files, which are read when it is asked."""


class JobSpool(Spool):
    """The worker's spool, which holds back the decisions of calls under way until they are written with the answer."""

    def __init__(self, spool: Spool) -> None:
        super().__init__(spool.directory)
        self._spool = spool
        self._expected: dict[str, DecisionRecord | None] = {}

    def append(self, record: Record) -> bool:
        if isinstance(record, DecisionRecord) and record.request_id in self._expected:
            self._expected[record.request_id] = record
            return True
        return self._spool.append(record)

    def expect(self, request_id: str) -> None:
        """Hold this request's decision back until `take`."""
        self._expected[request_id] = None

    def take(self, request_id: str) -> DecisionRecord | None:
        return self._expected.pop(request_id)

    async def sync(self) -> None:
        await self._spool.sync()

    def close(self) -> None:
        """Does nothing: the worker closes its spool itself."""


class JobBook(RouteBook):
    """The worker's present routes, and one planned route for each prompt under way."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self.planned: dict[str, Route] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._services.book, name)

    def find(self, name: str, param: str = "model") -> Route:
        return self.planned.get(name) or self._services.book.find(name, param)

    def narrow(self, route: Route, names: tuple[str, ...]) -> Route:
        """The route unchanged: the plan has chosen among the models that the line allows."""
        return route


class FixedRouter:
    """A router that always returns the plan's choice."""

    name, version, features_version = "batch", "1", ""

    def __init__(self, choice: Choice) -> None:
        self._choice = choice

    def choose(self, query: Query, candidates: Sequence[Candidate], knobs: Knobs, draw: float) -> Choice:
        return self._choice


class BestOfPlanner:
    """Plans the best of several samples of one model, by their vote and confidence."""

    writes = False

    def __init__(self, count: int) -> None:
        self.count = count

    def plan(self, request: PlanRequest, share: float = 1.0, most_wrong: float | None = None) -> Plan:
        ballots = samples(request.step(request.choice.model), self.count, TEMPERATURE)
        return Plan(ballots, (), request.limits, request.retries, Vote(ballots, accept_share=0.0))


class Asker:
    """Asks the prompts of one job; its runner decides how many at once."""

    def __init__(self, services: Services, job: str, caller: Caller) -> None:
        self.job = job
        self.caller = replace(caller, explore=False)  # a job's calls are planned, so they never explore
        self.spool = JobSpool(services.spool)
        self.file_bytes: Mapping[str, int] = {}
        """Sizes of the files that the job's prompts name, by id."""
        self.book = JobBook(services)
        self.s = replace(services, spool=self.spool, book=self.book)
        self.answering = Answering(self.s)

    def ready(self, prompt: Prompt, arm_call: ArmCall) -> PreparedCall:
        """The prompt as a call of the request path, with its worst-case cost, or the error that refuses it."""
        try:
            call = self.call(prompt)
            permit(self.caller, call)
            route = self._route(call, arm_call)
            named = find(call.raw, call.surface) if call.described.attached else None
        except HeadgateError as error:
            return PreparedCall(prompt, 0, None, None, error)
        if named is not None:
            sizes = (self.file_bytes.get(place.id, 0) for place in named.places)
            call.described.input_tokens_bound += SENT_BYTES * sum(sizes)
        worst = cost_bound(route, self.answering.worst_cases(call, route), route.names)
        return PreparedCall(prompt, worst, call, route, names_files=named is not None)

    async def with_files(self, ready: PreparedCall) -> tuple[Call, int]:
        """The call with the contents of the files that it names, and its worst-case cost in nano-dollars. Raises
        HeadgateError where a file can't be had.
        """
        assert ready.call is not None and ready.route is not None
        call = await call_with_files(self.s, ready.call, self.caller.tenant)
        return call, cost_bound(ready.route, self.answering.worst_cases(call, ready.route), ready.route.names)

    async def ask(self, ready: PreparedCall, *, tries: int, timeout_s: float) -> CallResult:
        """Make one call. `tries`: how many calls of this prompt have been made before. Raises only when cancelled."""
        line, call = ready.prompt.line, ready.call
        result = CallResult(ready.prompt.index, line, 0)
        request_id = f"{self.job}-{line}-{self.s.ids.new('try')[4:]}"
        if call is None or ready.route is None:
            assert ready.error is not None
            return await self._refused(result, ready.prompt, request_id, ready.error)
        worst = ready.worst_nanousd
        if ready.names_files:
            try:
                call, worst = await self.with_files(ready)
            except HeadgateError as error:
                if not may_ask_again(error.status, tries + 1):
                    return await self._refused(result, ready.prompt, request_id, error)
                result.status, result.code = error.status, error.code or error.kind
                result.held, result.final, result.retry_after_s = False, False, error.retry_after_s or 0.0
                return result
        name = f"\0{request_id}"
        self.book.planned[name] = ready.route
        call.request_id, call.received_s, call.timeout_s = request_id, self.s.now(), timeout_s
        call.options = msgspec.structs.replace(call.options, route=name)
        await self.write(JobStartRecord(job=self.job, index=line, time_s=self.s.clock(), worst_nanousd=worst))
        try:
            return await self._heard(call, result, tries)
        finally:
            del self.book.planned[name]

    async def _heard(self, call: Call, result: CallResult, tries: int) -> CallResult:
        """Answer the call and record its decision with the answer. Nothing is awaited between the two, so that only a
        crash within microseconds can lose the decision.
        """
        heard = Heard()
        self.spool.expect(call.request_id)
        try:
            exchange = await self.answering.answer(call, heard, self.caller)
        except BaseException:
            decision = self.spool.take(call.request_id)
            if decision is not None:
                self.spool.append(self._kept(decision, result, b""))
            raise
        decision = self.spool.take(call.request_id)
        result.status, result.retry_after_s = heard.status, heard.retry_after_s
        result.latency_s = self.s.now() - call.received_s
        result.final = result.ok or not may_ask_again(result.status, tries + 1)
        if exchange is None or decision is None:
            result.body, result.code, result.held = bytes(heard.body), error_code(heard.body), False
            await self.write(JobStartRecord(job=self.job, index=result.line, time_s=self.s.clock()))
            return result
        result.code, result.cost_nanousd = exchange.error, exchange.cost_nanousd
        result.model, result.decision_id = exchange.answered_by, exchange.decision_id
        await self.write(self._kept(decision, result, bytes(heard.body) if result.final else b""))
        return result

    async def give_up(self, prompt: Prompt, status: int, code: str, message: str) -> None:
        """Record that a prompt failed without being asked, at no cost."""
        error = HeadgateError(message, code=code, status=status)
        await self._refused(CallResult(prompt.index, prompt.line, 0), prompt, f"{self.job}-{prompt.line}", error)

    async def _refused(self, result: CallResult, prompt: Prompt, request_id: str, error: HeadgateError) -> CallResult:
        result.status, result.code = error.status, error.code or error.kind
        result.body = render_error(error, prompt.surface, request_id=request_id)
        await self.write(self._refusal(result, prompt, request_id))
        return result

    def _refusal(self, result: CallResult, prompt: Prompt, request_id: str) -> DecisionRecord:
        return DecisionRecord(
            id=self.s.ids.new("dec"), time_s=self.s.clock(), request_id=request_id, tenant=self.caller.tenant,
            key_id=self.caller.key_id, surface=prompt.surface, status=result.status, error=result.code, cache="off",
            job=self.job, job_index=prompt.line, job_answer=result.body,
        )  # fmt: skip

    def _kept(self, decision: DecisionRecord, result: CallResult, body: bytes) -> DecisionRecord:
        """The decision with the job's fields and the answer; `body` is empty where the prompt will be asked again."""
        return msgspec.structs.replace(
            decision, job=self.job, job_index=result.line, job_final=bool(body), job_answer=body
        )

    async def write(self, record: Record) -> None:
        """Append to the spool. Where that fails (a full disk) wait and retry, since paid answers are never dropped."""
        while not self.spool.append(record):  # noqa: ASYNC110 - no event tells when a disk has space again
            await asyncio.sleep(SPOOL_RETRY_S)

    def call(self, prompt: Prompt) -> Call:
        """The prompt as a request. Raises CallerError where it can't be one."""
        arrival = Arrival({}, "", "", self.s.now())
        server = self.s.config.server
        call = read_call(
            prompt.surface, prompt.body, arrival, max_messages=server.max_messages, timeout_s=server.request_timeout_s
        )
        if call.stream:
            raise CallerError("a batch line can't stream", param="stream", code="invalid_request")
        call.idempotency_key = f"{self.job}-{prompt.line}"
        return call

    def _route(self, call: Call, arm_call: ArmCall) -> Route:
        """The requested route with the plan's choice in place of its router. It makes no retries, which are up to the
        runner, so that the worst case is that of one call.
        """
        book, arm = self.s.book, arm_call.arm
        requested = book.find(call.options.route or call.model)
        model = book.models[arm.model]
        cascade = climbing(requested.cascade) if arm.rule >= 0 else None
        if cascade is not None and arm.rule < len(cascade.rules):
            attempts = cascade.posterior.space.depth + 1
            config = msgspec.structs.replace(requested.config, retries=0, max_attempts=attempts, hedge_after_s=None)
            return replace(
                requested, config=config, fallbacks=(), router=FixedRouter(choice_of(arm_call)), promise=None,
                strategy_bandit=None, cascade=Climbing(cascade, arm.model, arm.rule),
            )  # fmt: skip
        if arm_call.better and arm.rule < 0 and requested.router is not None:
            return replace(requested, router=FixedRouter(choice_of(arm_call)))
        config = msgspec.structs.replace(
            requested.config, retries=0, max_attempts=max(1, arm.samples), hedge_after_s=None, cascade="none"
        )
        sampled = BestOfPlanner(arm.samples) if arm.samples > 1 else None
        names = (arm.model,) * max(1, arm.samples)
        router = FixedRouter(choice_of(replace(arm_call, better=())))
        return replace(
            requested, config=config, models=(model,), fallbacks=(), router=router,
            default_model=arm.model, names=names, cascade=sampled, promise=None,
        )  # fmt: skip


def choice_of(arm_call: ArmCall) -> Choice:
    """The plan's choice as a router's choice: of probability 1, followed by the better models in rising quality."""
    own = Estimate(arm_call.arm.model, arm_call.quality, 0.0, arm_call.cost_usd)
    ranked = (own, *sorted(arm_call.better, key=lambda one: one.quality))
    probabilities = {one.model: float(one is own) for one in ranked}
    return Choice(own.model, 1.0, probabilities, ranked, {}, "planned", "batch@1", tuple(probabilities))


def may_ask_again(status: int, tries: int) -> bool:
    """Whether a prompt may be asked again after `tries` calls, the last of which ended with this HTTP status."""
    return status in MAY_PASS and tries < (MAX_TRIES_BUSY if status in BUSY else MAX_TRIES)


def error_code(body: bytes | bytearray) -> str:
    """The code, or else the type, of an error answer; empty where it has none."""
    try:
        error = msgspec.json.decode(body)["error"]
        return str(error.get("code") or error.get("type") or "")
    except (msgspec.MsgspecError, KeyError, TypeError, AttributeError):
        return ""
