"""Providers' own batch endpoints: half the price for those who can wait (OpenAI's /v1/files and /v1/batches).

A part of the job is uploaded as one file of requests, which include the contents of the files that they name. Money for
its worst case is held until the part has ended. The part is stored in the database before the provider gets it, so that
after a crash the next runner finds the provider's batch by the part's id instead of paying for another. While the
provider can't be reached the runner waits, since the batch continues there and is billed; requests that it doesn't
answer in time are asked one by one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import ceil, isfinite

import msgspec
from sqlalchemy.exc import SQLAlchemyError

from cascade.types import Rung
from gateway.batch.ask import MAY_PASS, CallResult, PreparedCall, error_code
from gateway.batch.endpoint_api import (
    OVER,
    TIMEOUT_S,
    Batch,
    BatchAPI,
    EndpointNotFound,
    EndpointUnavailable,
    Line,
    client_of,
)  # fmt: skip
from gateway.batch.jobs import Part
from gateway.batch.prompt_queue import AWAY
from gateway.batch.run import Runner
from gateway.batch.types import Arm, Prompt
from gateway.call import Call
from gateway.errors import HeadgateError, PolicyError, UpstreamError
from gateway.fleet import Deployment
from gateway.journal.record import AttemptRecord, DecisionRecord, new_id
from gateway.money.charge import cost_of
from gateway.providers.openai import PATHS, RESPONSES, OpenAIProvider
from gateway.services import Services
from gateway.settle import buckets
from gateway.upstream_request import request_body
from gateway.wire.answer import translate_answer
from gateway.wire.peek import peek

log = logging.getLogger("headgate.batch")
Write = Callable[[Call, int], bytes]
"""Writes a call as a line of the file, given the number of its line in the job's input."""

MOST_LINES = 50_000
MOST_BYTES = 100 * 1024 * 1024
POLL_S = 1.0
LONGEST_POLL_S = 30.0
TRIES = 5
"""Attempts to create a batch that the provider can't have yet, to cancel a batch, or to find one."""
MOST_DIGITS = 18
"""Most digits of a line number that are parsed."""
STORE_RETRY_S = 1.0
LOST = "batch_output_lost"
"""Error code of a line whose answer was paid for and is lost."""
SPARE = 1.5
"""Time reserved before the deadline to ask a part's prompts one by one, as a multiple of the predicted time."""
LEAST_SPARE_S = 60.0
"""The least such time in seconds."""


class NewParts:
    """Collects prompts into new parts, each of one surface and within the provider's limits."""

    def __init__(self, job: str, arm: Arm, provider: str, share: float) -> None:
        """`share`: price of the batch endpoint, as a share of the live price."""
        self.parts: list[Part] = []
        self._job, self._arm, self._provider, self._share = job, arm, provider, share
        self._latest: dict[str, tuple[Part, int]] = {}

    def add(self, prompt: Prompt, worst_nanousd: int, size: int) -> None:
        """Add a prompt that is `size` bytes as a line; one that is too large for any part is left out."""
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
    """Held while a part's file is in memory, so that there is one at a time."""

    async def parts(self, runner: Runner) -> Sequence[Part]:
        """Earlier parts that have not ended, and new ones for the prompts that the plan sends to the endpoint."""
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
        """Run one part until each of its prompts has a result or is given back."""
        worst = part.worst_nanousd
        try:
            hold = await self.s.ledger.hold(runner.asker.caller.accounts, worst)
        except PolicyError:
            if part.is_new:
                runner.come_back(runner.places(part))
                return
            worst = 0  # the provider has it already and will bill it
            hold = await self.s.ledger.hold(runner.asker.caller.accounts, worst)
        cost = 0
        runner.held += worst
        try:
            await self._store(runner, part)
            provider = self.s.driver.sender.providers.get(part.provider)
            if provider is None:
                raise UpstreamError("unavailable", f"there is no provider '{part.provider}' any more")
            async with client_of(provider) as http:
                lines = await self._until_over(runner, part, BatchAPI(http))
            if lines is None:
                return
            for line in lines:
                cost += await self._record_answer(runner, part, line)
            await self._end(runner, part)
        except EndpointNotFound as error:
            log.error("part %s of %s: the output of the provider's batch %s is gone; its lines have failed and are not "
                      "asked again, because they were paid for: %s",
                      part.id, part.job, part.upstream, error)  # fmt: skip
            cost += await self._record_loss(runner, part)
            await self._end(runner, part)
        except UpstreamError as error:
            log.warning("part %s of %s: %s", part.id, part.job, error)
            await self._end(runner, part)
        except Exception:  # neither a bug nor an unforeseen answer may block the job forever
            log.exception("part %s of %s failed inside the gateway", part.id, part.job)
            await self._end(runner, part)
        finally:
            runner.held -= worst
            hold.settle(cost)

    # ---- what is sent

    def _deployment(self, arm: Arm) -> Deployment | None:
        """A deployment of the arm's model whose provider has a batch endpoint; None where there is none."""
        for deployment in self.s.fleet.deployments(arm.model):
            provider = self.s.driver.sender.providers[deployment.provider]
            if type(provider) is OpenAIProvider and provider.config.batch_discount > 0:
                return deployment
        return None

    def _share(self, deployment: Deployment) -> float:
        """Price of the deployment's batch endpoint, as a share of the live price."""
        return 1.0 - self.s.driver.sender.providers[deployment.provider].config.batch_discount

    async def _new(self, runner: Runner, arm: Arm, deployment: Deployment, places: Sequence[int]) -> list[Part]:
        """New parts for the prompts `places`. Files that lines name are read here one after the other, for their worst
        case and size, and again when the part is uploaded. Prompts that can't be sent are left out; asked one by one,
        they are refused with the reason.
        """
        new = NewParts(runner.job.id, arm, deployment.provider, self._share(deployment))

        def add(ready: PreparedCall, _: Call) -> None:
            new.add(ready.prompt, ready.worst_nanousd, len(ready.prompt.body))

        for place in await asyncio.to_thread(_take_without_files, runner, places, add):
            ready = _ready(runner, place)
            with suppress(HeadgateError):
                call, worst = await runner.asker.with_files(ready)
                new.add(ready.prompt, worst, sum(len(memoryview(value)) for value in call.raw.values()))
        return new.parts

    async def _file(self, runner: Runner, part: Part, write: Write) -> bytes:
        """The part's file of requests. A line that can't be sent, because a file that it names is gone, is left out.
        Raises UpstreamError where no line is left, EndpointUnavailable where a file can't be read for now.
        """
        lines: list[bytes] = []

        def add(ready: PreparedCall, call: Call) -> None:
            lines.append(write(call, ready.prompt.line))

        for place in await asyncio.to_thread(_take_without_files, runner, runner.places(part), add):
            ready = _ready(runner, place)
            try:
                call, _ = await runner.asker.with_files(ready)
                await asyncio.to_thread(add, ready, call)
            except HeadgateError as error:
                if error.status in MAY_PASS:
                    raise EndpointUnavailable("unavailable", error.message) from None
        if not lines:
            raise UpstreamError("rejected", "none of the part's lines can be sent")
        return b"".join(lines)

    # ---- the batch at the provider

    async def _until_over(self, runner: Runner, part: Part, api: BatchAPI) -> list[Line] | None:
        """The lines of the provider's output once its batch has ended; None where the runner stops before that."""
        cancelled, troubles = False, 0
        wait_s = self.poll_s
        while not (runner.stopped or runner.lost):
            late = runner.left_s < self._spare_s(runner, part)
            try:
                batch = await self._batch(runner, part, api)
                if batch.status in OVER:
                    return await api.lines(batch)
                if not cancelled and (late or runner.wish == "cancel"):
                    await _cancel(api, part.upstream)
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
        """Seconds to reserve before the deadline to ask the part one by one; negative where there is no deadline."""
        if not isfinite(runner.left_s):
            return -1.0
        places = runner.places(part)
        latency = runner.plan.estimates.latency_s[places, runner.queue.arm[places]]
        known = float(latency[latency == latency].sum())
        return max(self.least_spare_s, SPARE * known / runner.job.card.concurrency)

    async def _batch(self, runner: Runner, part: Part, api: BatchAPI) -> Batch:
        """The provider's present state of the batch, which is created first where there is none. There may be one
        though its id was not stored: its runner died, or the provider's answer did not arrive.
        """
        if part.upstream:
            return await api.batch(part.upstream)
        found = None if part.is_new else await api.find(part.id)
        batch = found or await self._create(runner, part, api)
        part.upstream = batch.id
        await self._store(runner, part)
        return batch

    async def _create(self, runner: Runner, part: Part, api: BatchAPI) -> Batch:
        deployment = self._deployment_of(part)
        places = runner.places(part)
        if not places:
            raise UpstreamError("rejected", "none of the part's lines is a prompt of the present plan")
        prompt: Prompt = runner.plan.prompts[places[0]]
        dialect = self.s.driver.sender.providers[part.provider].dialect_for(prompt.surface)
        url = f"/v1{PATHS.get(dialect, RESPONSES)}"
        rung = Rung(part.model, True, TIMEOUT_S)

        def write(call: Call, line: int) -> bytes:
            body = msgspec.Raw(request_body(call, deployment, dialect, rung, live=False))
            fields = {"custom_id": f"{part.id}-{line}", "method": "POST", "url": url, "body": body}
            return msgspec.json.encode(fields) + b"\n"

        async with self.uploads:
            content = await self._file(runner, part, write)
            file_id = await api.upload(f"{part.id}.jsonl", content)
        part.is_new = False
        return await api.create(file_id, url, part.window_s, part.id)

    def _deployment_of(self, part: Part) -> Deployment:
        """The deployment that the part was sent to. Raises UpstreamError where the configuration has it no more."""
        for one in self.s.fleet.deployments(part.model):
            if one.provider == part.provider:
                return one
        message = f"the configuration no longer has a deployment of '{part.model}' at provider '{part.provider}'"
        raise UpstreamError("unavailable", message)

    # ---- the results

    async def _record_answer(self, runner: Runner, part: Part, line: Line) -> int:
        """Write one answer to the journal, and return its cost in nano-dollars. The record's id follows from the part
        and the line, so that an answer that is read twice counts once.
        """
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

    async def _record_loss(self, runner: Runner, part: Part) -> int:
        """Record the part's prompts without an answer as failed, and return their cost in nano-dollars, for which the
        plan's expectation is taken.
        """
        message = f"the output of the provider's batch {part.upstream} is gone; it was paid for and was not asked again"
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
            usage, cost = seen.usage, ceil(cost_of(seen.usage, deployment, seen.tier) * self._share(deployment))
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

    async def _end(self, runner: Runner, part: Part) -> None:
        """End the part; its prompts without an answer are asked one by one."""
        part.state = "ended"
        runner.come_back([place for place in runner.places(part) if runner.queue.state[place] == AWAY])
        await self._store(runner, part)

    async def _store(self, runner: Runner, part: Part) -> None:
        """Store the part in the database, and wait where the database can't be reached."""
        while not (runner.stopped or runner.lost):
            try:
                await asyncio.to_thread(runner.jobs.put_part, part, self.s.clock())
                return
            except SQLAlchemyError as fault:
                log.warning("part %s of %s waits: %s", part.id, part.job, fault)
                await asyncio.sleep(STORE_RETRY_S)


def _ready(runner: Runner, place: int) -> PreparedCall:
    return runner.asker.ready(runner.plan.prompts[place], runner.arm_call(place, int(runner.queue.arm[place])))


def _take_without_files(
    runner: Runner, places: Sequence[int], take: Callable[[PreparedCall, Call], None]
) -> list[int]:
    """Pass the prompts that name no files to `take`, and return the places of those that do. Prompts that can't be
    asked at all are left out.
    """
    naming = []
    for place in places:
        ready = _ready(runner, place)
        if ready.names_files:
            naming.append(place)
        elif ready.call is not None:
            take(ready, ready.call)
    return naming


async def _cancel(api: BatchAPI, id: str) -> None:
    """Cancel a batch. The provider's refusal, for a batch that has ended already, is only logged."""
    try:
        await api.cancel(id)
    except EndpointUnavailable:
        raise
    except UpstreamError as refused:
        log.info("%s", refused)
