"""Providers' own batch endpoints: half the price for those who can wait (OpenAI's /v1/files and /v1/batches).

A part of the job goes there as one file, in which the files that its lines name are put into them. Its worst case is
held for as long as it lies there, and it is in the database before the provider hears of it, so a runner that died
between the two finds its batch by the part's name instead of paying for another. A provider that can't be reached for a
while is waited for, since its batch goes on and is billed; what it doesn't answer in time is asked one by one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import ceil, isfinite
from typing import Any, TypeVar

import httpx
import msgspec
from sqlalchemy.exc import SQLAlchemyError

from cascade.types import Rung
from gateway.attempt import cost_of
from gateway.batch.ask import MAY_PASS, CallResult, PreparedCall, error_code
from gateway.batch.jobs import Part
from gateway.batch.prompt_queue import AWAY
from gateway.batch.run import Runner
from gateway.batch.types import Arm, Prompt
from gateway.call import Call
from gateway.errors import HeadgateError, PolicyError, UpstreamError
from gateway.fleet import Deployment
from gateway.journal.record import AttemptRecord, DecisionRecord, new_id
from gateway.providers import Provider
from gateway.providers.openai import PATHS, RESPONSES, OpenAIProvider
from gateway.services import Services
from gateway.settle import buckets
from gateway.upstream.checked import checked_async
from gateway.upstream_request import request_body
from gateway.wire.answer import peek, translate_answer

log = logging.getLogger("headgate.batch")
T = TypeVar("T")
Write = Callable[[Call, int], bytes]
"""A call as the line of that number."""

MOST_LINES = 50_000
MOST_BYTES = 100 * 1024 * 1024
OVER = frozenset({"completed", "failed", "expired", "cancelled"})
POLL_S = 1.0
LONGEST_POLL_S = 30.0
TIMEOUT_S = 60.0
TRIES = 5
"""To hand over what no provider can have heard of, and to have a batch cancelled."""
MOST_DIGITS = 18
"""Of a line's number."""
MOST_PAGES = 100
"""Of a provider's list of batches, that are looked through for one."""
STORE_RETRY_S = 1.0
LOST = "batch_output_lost"
"""Code of a line that was answered and paid for, to nobody's use."""
SPARE = 1.5
"""Times the predicted time of asking a part one by one, kept before the deadline to do so."""
LEAST_SPARE_S = 60.0


class EndpointUnavailable(UpstreamError):
    """That may pass: the provider wasn't reached, or is not itself. It may have heard us all the same."""


class _Response(msgspec.Struct):
    status_code: int = 0
    body: dict[str, Any] = {}


class _Line(msgspec.Struct):
    """One line of a provider's output or error file."""

    custom_id: str = ""
    response: _Response | None = None


class _File(msgspec.Struct):
    id: str


class _Batch(msgspec.Struct):
    """As a provider tells of one."""

    id: str
    status: str
    metadata: dict[str, Any] | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None


class _Page(msgspec.Struct):
    data: list[_Batch]
    has_more: bool = False


class EndpointNotFound(UpstreamError):
    """The provider knows of no such batch or file any more."""


class NewParts:
    """Parts of one surface each, within the provider's limits."""

    def __init__(self, job: str, arm: Arm, provider: str, share: float) -> None:
        """`share`: of the live price."""
        self.parts: list[Part] = []
        self._job, self._arm, self._provider, self._share = job, arm, provider, share
        self._latest: dict[str, tuple[Part, int]] = {}

    def add(self, prompt: Prompt, worst_nanousd: int, size: int) -> None:
        """Of that many bytes as a line; one for which no batch has room is left out."""
        if size > MOST_BYTES:
            return
        part, taken = self._latest.get(prompt.surface, (None, 0))
        if part is None or len(part.lines) >= MOST_LINES or taken + size > MOST_BYTES:
            part, taken = Part(new_id("part"), self._job, "sent", 0, self._provider, self._arm.model, []), 0
            part.window_s, part.is_new = self._arm.window_s, True
            self.parts.append(part)
        part.lines.append(prompt.line)
        part.worst_nanousd += ceil(worst_nanousd * self._share)
        self._latest[prompt.surface] = part, taken + size


@dataclass(frozen=True, slots=True)
class ProviderEndpoints:
    """The batch endpoints of this gateway's providers."""

    s: Services
    poll_s: float = POLL_S
    least_spare_s: float = LEAST_SPARE_S
    uploads: asyncio.Lock = field(default_factory=asyncio.Lock)
    """One part's file is in memory at a time."""

    async def parts(self, runner: Runner) -> Sequence[Part]:
        """Earlier parts that have not ended, and new ones for what the plan sends there."""
        known = await asyncio.to_thread(runner.jobs.parts, runner.job.id)
        parts = [part for part in known if part.state == "sent"]
        for number, places in runner.queue.at_endpoints() if not runner.ended_early else ():
            arm = runner.plan.estimates.arms[number]
            deployment = self._deployment(arm)
            if deployment is not None:
                parts += await self._new(runner, arm, deployment, places.tolist())
        for part in parts:
            open_ = [place for place in runner.places(part) if runner.queue.state[place] <= AWAY]
            runner.queue.state[open_] = AWAY
        return parts

    async def run(self, runner: Runner, part: Part) -> None:
        """Until every prompt of the part is heard of, or given back."""
        worst = part.worst_nanousd
        try:
            hold = await self.s.ledger.hold(runner.asker.caller.accounts, worst)
        except PolicyError:
            if part.is_new:
                runner.come_back(runner.places(part))
                return
            worst = 0  # it is at the provider already, and will be paid
            hold = await self.s.ledger.hold(runner.asker.caller.accounts, worst)
        cost = 0
        runner.held += worst
        try:
            await self._keep(runner, part)
            provider = self.s.driver.sender.providers.get(part.provider)
            if provider is None:
                raise UpstreamError("unavailable", f"there is no provider '{part.provider}' any more")
            async with client_of(provider) as http:
                lines = await self._until_over(runner, part, http)
            if lines is None:
                return
            for line in lines:
                cost += await self._hear(runner, part, line)
            await self._over(runner, part)
        except EndpointNotFound as error:
            log.error("part %s of %s: what the provider's batch %s came to is gone, its lines have failed and are not "
                      "asked again, since they were paid for: %s", part.id, part.job, part.upstream, error)  # fmt: skip
            cost += await self._lose(runner, part)
            await self._over(runner, part)
        except UpstreamError as error:
            log.warning("part %s of %s: %s", part.id, part.job, error)
            await self._over(runner, part)
        except Exception:  # a fault of ours, or an answer that nobody foresaw, must not hold up the job for good
            log.exception("part %s of %s failed inside the gateway", part.id, part.job)
            await self._over(runner, part)
        finally:
            runner.held -= worst
            hold.settle(cost)

    # ---- what is sent

    def _deployment(self, arm: Arm) -> Deployment | None:
        """Where the arm's model has an endpoint that we speak."""
        for deployment in self.s.fleet.deployments(arm.model):
            provider = self.s.driver.sender.providers[deployment.provider]
            if type(provider) is OpenAIProvider and provider.config.batch_discount > 0:
                return deployment
        return None

    async def _new(self, runner: Runner, arm: Arm, deployment: Deployment, places: Sequence[int]) -> list[Part]:
        """Files that lines name are read one after the other, to know what is to be held and how much room they take,
        and again for the batch. What can't be sent is left out: asked one by one it is refused with its reason.
        """
        new = NewParts(runner.job.id, arm, deployment.provider, _share(self, deployment))

        def add(without_files: Sequence[int]) -> list[int]:
            naming = []
            for place in without_files:
                ready = _ready(runner, place)
                if ready.names_files:
                    naming.append(place)
                elif ready.error is None:
                    new.add(ready.prompt, ready.worst_nanousd, len(ready.prompt.body))
            return naming

        for place in await asyncio.to_thread(add, places):
            ready = _ready(runner, place)
            with suppress(HeadgateError):
                call, worst = await runner.asker.with_files(ready)
                new.add(ready.prompt, worst, sum(len(memoryview(value)) for value in call.raw.values()))
        return new.parts

    async def _file(self, runner: Runner, part: Part, write: Write) -> bytes:
        """A line that can't be sent, since its file is no more, is left out, as above."""
        lines: list[bytes] = []

        def add(without_files: Sequence[int]) -> list[int]:
            naming = []
            for place in without_files:
                ready = _ready(runner, place)
                if ready.names_files:
                    naming.append(place)
                elif ready.call is not None:
                    lines.append(write(ready.call, ready.prompt.line))
            return naming

        for place in await asyncio.to_thread(add, runner.places(part)):
            ready = _ready(runner, place)
            try:
                call, _ = await runner.asker.with_files(ready)
                lines.append(await asyncio.to_thread(write, call, ready.prompt.line))
            except HeadgateError as error:
                if error.status in MAY_PASS:
                    raise EndpointUnavailable("unavailable", error.message) from None
        if not lines:
            raise UpstreamError("rejected", "none of its lines can be sent")
        return b"".join(lines)

    # ---- the batch at the provider

    async def _until_over(self, runner: Runner, part: Part, http: httpx.AsyncClient) -> list[_Line] | None:
        """What the provider's batch gave in the end; None: the runner stops, and the next one looks again."""
        cancelled, troubles = False, 0
        wait_s = self.poll_s
        while not (runner.stopped or runner.lost):
            late = runner.left_s < self._spare_s(runner, part)
            try:
                batch = await self._batch(runner, part, http)
                if batch.status in OVER:
                    return await _lines(http, batch)
                if not cancelled and (late or runner.wish == "cancel"):
                    await _cancel(http, part.upstream)
                    cancelled = True
            except (EndpointUnavailable, EndpointNotFound) as trouble:
                troubles += 1
                not_there = part.is_new or runner.wish == "cancel" or isinstance(trouble, EndpointNotFound)
                in_vain = troubles >= TRIES and not_there
                if late or in_vain:
                    raise
                log.warning("part %s of %s waits: %s", part.id, part.job, trouble)
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 1.5, LONGEST_POLL_S)
        return None

    def _spare_s(self, runner: Runner, part: Part) -> float:
        if not isfinite(runner.left_s):
            return -1.0
        places = runner.places(part)
        latency = runner.plan.estimates.latency_s[places, runner.queue.arm[places]]
        known = float(latency[latency == latency].sum())
        return max(self.least_spare_s, SPARE * known / runner.job.card.concurrency)

    async def _batch(self, runner: Runner, part: Part, http: httpx.AsyncClient) -> _Batch:
        """As the provider sees it now; made there first where it doesn't know it."""
        if not part.upstream:
            found = await self._found(part, http) or await self._make(runner, part, http)
            part.upstream = found.id
            await self._keep(runner, part)
            return found
        return await _asked(http, "GET", f"/batches/{part.upstream}", _Batch)

    async def _found(self, part: Part, http: httpx.AsyncClient) -> _Batch | None:
        """One that an earlier runner made, or we, and did not live or hear to write down."""
        after: dict[str, Any] = {}
        for _ in range(0 if part.is_new else MOST_PAGES):
            page = await _asked(http, "GET", "/batches", _Page, params={"limit": 100, **after})
            for one in page.data:
                if (one.metadata or {}).get("part") == part.id:
                    return one
            if not page.has_more or not page.data:
                break
            after = {"after": page.data[-1].id}
        return None

    async def _make(self, runner: Runner, part: Part, http: httpx.AsyncClient) -> _Batch:
        deployment = self._deployment_of(part)
        places = runner.places(part)
        if not places:
            raise UpstreamError("rejected", "none of its lines is a prompt of its own any more")
        prompt: Prompt = runner.plan.prompts[places[0]]
        dialect = self.s.driver.sender.providers[part.provider].dialect_for(prompt.surface)
        url = f"/v1{PATHS.get(dialect, RESPONSES)}"
        rung = Rung(part.model, True, TIMEOUT_S)

        def write(call: Call, line: int) -> bytes:
            body = msgspec.Raw(request_body(call, deployment, dialect, rung, live=False))
            told = {"custom_id": f"{part.id}-{line}", "method": "POST", "url": url, "body": body}
            return msgspec.json.encode(told) + b"\n"

        async with self.uploads:
            content = await self._file(runner, part, write)
            form = {"file": (f"{part.id}.jsonl", content, "application/jsonl")}
            file = await _asked(http, "POST", "/files", _File, data={"purpose": "batch"}, files=form)
        asks = {"input_file_id": file.id, "endpoint": url, "completion_window": _window(part.window_s),
                "metadata": {"part": part.id}}  # fmt: skip
        part.is_new = False
        return await _asked(http, "POST", "/batches", _Batch, json=asks)

    def _deployment_of(self, part: Part) -> Deployment:
        """Where it lies. Raises UpstreamError where the configuration has no such any more."""
        for one in self.s.fleet.deployments(part.model):
            if one.provider == part.provider:
                return one
        raise UpstreamError("unavailable", f"'{part.model}' is not at provider '{part.provider}' any more")

    # ---- what it gave

    async def _hear(self, runner: Runner, part: Part, line: _Line) -> int:
        """One answer into the journal, under an id that a second hearing doesn't count again; what it cost."""
        number = line.custom_id.removeprefix(f"{part.id}-")
        is_ours = number.isdecimal() and len(number) <= MOST_DIGITS
        place = runner.plan.prompts.place_of(int(number)) if is_ours else None
        if place is None or runner.queue.state[place] != AWAY or line.response is None:
            return 0
        status, body = line.response.status_code, msgspec.json.encode(line.response.body)
        if not (status == 200 and line.response.body) and not 400 <= status < 429:
            return 0  # given back with the rest
        prompt = runner.plan.prompts[place]
        deployment = self._deployment_of(part)
        code = "" if status == 200 else error_code(body)
        result = CallResult(place, prompt.line, status, body, code, model=part.model)
        record = self._record(runner, part, prompt, deployment, result)
        result.decision_id, result.cost_nanousd = record.id, record.cost_nanousd
        await runner.asker.write(record)
        runner.heard_away(place, int(runner.queue.arm[place]), result)
        return result.cost_nanousd

    async def _lose(self, runner: Runner, part: Part) -> int:
        """Those without an answer have failed; what they cost as far as is known: what the plan expected."""
        message = f"the provider's batch {part.upstream} was paid for and its output is gone; it was not asked again"
        error = {"message": message, "type": "upstream_error", "param": None, "code": LOST}
        body, cost = msgspec.json.encode({"error": error}), 0
        deployment = self._deployment_of(part)
        for place in [place for place in runner.places(part) if runner.queue.state[place] == AWAY]:
            prompt, arm = runner.plan.prompts[place], int(runner.queue.arm[place])
            expected_usd = float(runner.plan.estimates.cost_usd[place, arm])
            result = CallResult(place, prompt.line, 502, body, LOST, model=part.model)
            result.cost_nanousd = ceil(expected_usd * 1e9) if isfinite(expected_usd) else 0
            record = self._record(runner, part, prompt, deployment, result)
            result.decision_id = record.id
            await runner.asker.write(record)
            runner.heard_away(place, arm, result)
            cost += result.cost_nanousd
        return cost

    def _record(
        self, runner: Runner, part: Part, prompt: Prompt, deployment: Deployment, result: CallResult
    ) -> DecisionRecord:
        dialect = self.s.driver.sender.providers[part.provider].dialect_for(prompt.surface)
        call, caller = runner.asker.call(prompt), runner.asker.caller
        usage, cost = None, result.cost_nanousd
        if result.status == 200:
            seen = peek(result.body, dialect)
            usage, cost = seen.usage, ceil(cost_of(seen.usage, deployment, seen.tier) * _share(self, deployment))
            result.body = translate_answer(result.body, dialect, prompt.surface, model=part.model, request=call.raw)
        attempt = AttemptRecord(
            model=part.model, deployment=deployment.id, status=result.status, cost_nanousd=cost,
            usage=buckets(usage) if usage is not None else {}, failure="" if result.status == 200 else "rejected",
        )  # fmt: skip
        return DecisionRecord(
            id=f"dec_{part.id}_{prompt.line}", time_s=self.s.clock(),
            request_id=f"{part.job}-{prompt.line}-{part.id}",
            tenant=caller.tenant, key_id=caller.key_id, surface=prompt.surface, route=part.model,
            requested_model=call.model, input_tokens=call.described.input_tokens, explore=False, model=part.model,
            propensity=1.0, router="batch@1", reason="planned: the provider's batch endpoint", plan=(part.model,),
            attempts=(attempt,), verdict="only", answered_model=part.model if result.status == 200 else "",
            status=result.status, error=result.code, cache="off", cost_nanousd=cost, job=part.job,
            job_index=prompt.line, job_answer=result.body,
        )  # fmt: skip

    async def _over(self, runner: Runner, part: Part) -> None:
        """The part is done with; what has no answer is asked one by one."""
        part.state = "ended"
        runner.come_back([place for place in runner.places(part) if runner.queue.state[place] == AWAY])
        await self._keep(runner, part)

    async def _keep(self, runner: Runner, part: Part) -> None:
        """Where the part stands, in the database; one that is away is waited for."""
        while not (runner.stopped or runner.lost):
            try:
                await asyncio.to_thread(runner.jobs.put_part, part, self.s.clock())
                return
            except SQLAlchemyError as fault:
                log.warning("part %s of %s waits: %s", part.id, part.job, fault)
                await asyncio.sleep(STORE_RETRY_S)


def _ready(runner: Runner, place: int) -> PreparedCall:
    return runner.asker.ready(runner.plan.prompts[place], runner.arm_call(place, int(runner.queue.arm[place])))


def _share(upstreams: ProviderEndpoints, deployment: Deployment) -> float:
    """Of the live price."""
    return 1.0 - upstreams.s.driver.sender.providers[deployment.provider].config.batch_discount


def client_of(provider: Provider) -> httpx.AsyncClient:
    endpoint, config = provider.endpoint, provider.config
    uds = endpoint.uds or None
    origin = "http://localhost" if uds else f"{endpoint.scheme}://{endpoint.authority}"
    headers = {**provider.credentials(), **config.headers}
    transport = httpx.AsyncHTTPTransport(uds=uds, verify=config.verify_tls)
    return httpx.AsyncClient(
        base_url=origin + endpoint.base_path, headers=headers, timeout=TIMEOUT_S, transport=transport,
        event_hooks=checked_async(inner=endpoint.inner),
    )  # fmt: skip


async def _asked(http: httpx.AsyncClient, method: str, path: str, kind: type[T], **how: Any) -> T:
    """What the provider says. Raises Trouble where it may say so yet, UpstreamError where it won't."""
    said = await _said(http, method, path, **how)
    try:
        return msgspec.json.decode(said, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise EndpointUnavailable("bad_response", f"{method} {path}: {error}") from None


async def _cancel(http: httpx.AsyncClient, id: str) -> None:
    """One that was over before is refused that, which is as well."""
    try:
        await _said(http, "POST", f"/batches/{id}/cancel")
    except EndpointUnavailable:
        raise
    except UpstreamError as refused:
        log.info("%s", refused)


async def _said(http: httpx.AsyncClient, method: str, path: str, **how: Any) -> bytes:
    try:
        response = await http.request(method, path, **how)
    except httpx.HTTPError as error:
        raise EndpointUnavailable("connect", f"{method} {path}: {error or type(error).__name__}") from None
    status = response.status_code
    if status < 300:
        return response.content
    said = f"{method} {path}: {status}: {response.text[:300]}"
    if method == "GET" and status in (404, 410):
        raise EndpointNotFound("not_found", said)
    if status in MAY_PASS or status >= 500:
        raise EndpointUnavailable("server_error", said)
    raise UpstreamError("rejected", said)


async def _lines(http: httpx.AsyncClient, batch: _Batch) -> list[_Line]:
    """Of its output and its errors; what can't be read is left out. Raises Gone where the output is no more."""
    found = []
    contents = [await _said(http, "GET", f"/files/{id}/content") for id in filter(None, [batch.output_file_id])]
    if batch.error_file_id:
        with suppress(EndpointNotFound):  # who is not answered is asked again, and nothing was paid
            contents.append(await _said(http, "GET", f"/files/{batch.error_file_id}/content"))
    for line in b"\n".join(contents).splitlines():
        with suppress(msgspec.MsgspecError, UnicodeDecodeError):
            found.append(_decode_line(line))
    return found


_decode_line = msgspec.json.Decoder(_Line, strict=False).decode


def _window(seconds: float) -> str:
    """As OpenAI writes it."""
    return f"{max(1, round(seconds / 3600))}h"
