"""The durable list of batch jobs: their descriptions, their runners, their progress, and what users have asked of them.

It is stored in the journal's database, where the shipper also writes the result of every prompt (`job_items`), so that
a job and its cost can't disagree with the journal. One process at a time runs a job and holds its lease; another one
takes over where the lease has lapsed, or its holder has died on this machine. Every method blocks: call it off the
event loop.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Literal

import msgspec
import sqlalchemy as sa

from gateway.batch.origin import ANTHROPIC
from gateway.errors import CallerError, NotFound
from gateway.journal.record import new_id
from gateway.journal.tables import job_items, job_parts, jobs
from gateway.journal.upsert import clean, put_row
from gateway.journal.write_job_items import ENDED as ITEM_ENDED

State = Literal[
    "validating", "running", "paused", "finalizing", "cancelling", "completed", "cancelled", "expired", "failed"
]
ENDED = ("completed", "cancelled", "expired", "failed")
LEASE_S = 15.0
PAGE_ROWS = 500
Wish = Literal["", "pause", "cancel"]


class Card(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The description of a job: everything that its runner needs to begin, and what its end left."""

    source: str
    """The input's name, for people."""
    route: str = ""
    """The route that answers lines which name no model."""
    key_id: str = ""
    """The key whose account pays; empty: the operator's own."""
    folder: str = ""
    """Folder of the plan, on the machine that made it."""
    out: str = ""
    errors_out: str = ""
    fingerprint: str = ""
    """SHA-256 of the input's bytes: a job is only resumed with the same input."""
    budget_usd: float | None = None
    deadline_s: float | None = None
    """Unix time in seconds; None: no deadline."""
    concurrency: int = 16
    cascade: bool = False
    skip_bad: bool = False
    floor: float = 0.0
    """Least predicted quality of every answer."""
    engine: str = "embedded"
    total: int = 0
    """Lines to be answered, duplicates included."""
    endpoint: str = ""
    completion_window: str = ""
    metadata: dict[str, str] = {}
    input_file: str = ""
    output_expires_s: int | None = None
    """Seconds after which its output files expire; None: the gateway's default."""
    output_file: str = ""
    error_file: str = ""
    errors: list[dict[str, Any]] = []
    """Faults of its input, by line."""
    requests: int = 0
    """Message batches only: the number of all lines of the input, including bad ones and duplicates."""
    results: dict[str, int] = {}
    """Message batches only: numbers of requests by result (succeeded, errored, canceled, expired); empty before the
    end.
    """
    times: dict[str, float] = {}
    """Unix time at which each state was reached."""


class Progress(msgspec.Struct, omit_defaults=True):
    """How far a job is, as its runner last reported. Counts are of lines, including duplicates."""

    total: int = 0
    done: int = 0
    failed: int = 0
    in_flight: int = 0
    at_provider: int = 0
    """Prompts that wait in a provider's batch."""
    spent_nanousd: int = 0
    expected_nanousd: int = 0
    """Present prediction of the whole job's cost."""
    at_risk_nanousd: int = 0
    """Worst-case cost of calls that were under way when a runner died: their provider may have billed them."""
    quality: float | None = None
    """Mean predicted quality of the prompts that were or will be answered; None where there are none."""
    rate_per_s: float = 0.0
    """Calls per second."""
    eta_s: float | None = None
    """Seconds to the end; None: unknown."""
    concurrency: int = 0
    replans: int = 0
    warning: str = ""
    """Warning of a shortfall that is expected; empty where none is."""
    by_model: dict[str, int] = {}
    time_s: float = 0.0


class Job(msgspec.Struct):
    id: str
    tenant: str
    origin: str
    """One of the values of gateway/batch/origin.py."""
    state: State
    wish: Wish
    created_s: float
    owner: str
    lease_s: float
    at_risk_nanousd: int
    card: Card
    progress: Progress

    @property
    def files_of(self) -> str:
        """Owner of the job's input and output files: the tenant, or for message batches the job itself, so that no
        client can list them.
        """
        return self.id if self.origin == ANTHROPIC else self.tenant


class Item(msgspec.Struct):
    """One prompt, as the journal records it."""

    place: int
    """Number of its line in the input."""
    state: str
    tries: int
    worst_nanousd: int
    cost_nanousd: int
    decision_id: str
    model: str
    status: int
    answer: bytes = b""


class Part(msgspec.Struct):
    """Prompts that are sent to a provider's batch endpoint together."""

    id: str
    job: str
    state: str
    """sent | ended"""
    worst_nanousd: int
    provider: str = ""
    model: str = ""
    lines: list[int] = []
    """Numbers of the prompts' lines in the input."""
    upstream: str = ""
    """The provider's id of the batch; empty: not known yet."""
    window_s: float = 86400.0
    is_new: bool = False
    """Whether it can't have reached the provider yet."""


_time = sa.tuple_(jobs.c.created_s, jobs.c.id)
_IS_ANTHROPIC = jobs.c.origin == ANTHROPIC
_decode_card = msgspec.json.Decoder(Card).decode
_decode_progress = msgspec.json.Decoder(Progress).decode


def owner_name() -> str:
    """A new owner name for this process: host, process id, and a random part."""
    return f"{socket.gethostname()}/{os.getpid()}/{secrets.token_hex(4)}"


def is_gone(owner: str) -> bool:
    """Whether the owner was a process of this machine that has ended; False where that can't be known."""
    host, _, rest = owner.partition("/")
    pid = rest.partition("/")[0]
    if host != socket.gethostname() or not pid.isdigit() or int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # a process of another user
        pass
    return False


class Jobs:
    """The jobs of one database."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    # the list

    def add(
        self, tenant: str, origin: str, card: Card, now_s: float, state: State = "validating", *, id: str = ""
    ) -> Job:
        card.times[state] = now_s
        id = id or new_id("batch")
        job = Job(id, clean(tenant), origin, state, "", now_s, "", 0.0, 0, card, Progress())
        with self.engine.begin() as connection:
            put_row(connection, jobs, _row(job))
        return job

    def find(self, id: str, tenant: str | None = None, *, but: str = "") -> Job:
        """The job of this id, of the given tenant (None: of any) and of any origin except `but`. Raises NotFound."""
        query = sa.select(jobs).where(jobs.c.id == clean(id), jobs.c.origin != but)
        if tenant is not None:
            query = query.where(jobs.c.tenant == clean(tenant))
        found = self._jobs(query)
        if not found:
            raise NotFound(f"No batch found with id '{id}'.")
        return found[0]

    def page(self, tenant: str | None = None, *, after: str = "", limit: int = 20, but: str = "") -> list[Job]:
        """One page of jobs, newest first, of the given tenant (None: of all) and of any origin except `but`. `after`:
        the id of the last job of the page before. Raises NotFound where there is no such job.
        """
        query = sa.select(jobs).where(jobs.c.origin != but)
        query = query.order_by(jobs.c.created_s.desc(), jobs.c.id.desc()).limit(limit)
        if tenant is not None:
            query = query.where(jobs.c.tenant == clean(tenant))
        if after:
            last = self.find(after, tenant, but=but)
            query = query.where(_time < sa.tuple_(last.created_s, last.id))
        return self._jobs(query)

    def of_key(self, id: str, tenant: str, key_id: str) -> Job:
        """A message batch of this key. Raises NotFound."""
        query = sa.select(jobs).where(jobs.c.id == clean(id), jobs.c.tenant == clean(tenant), _IS_ANTHROPIC)
        found = [job for job in self._jobs(query) if job.card.key_id == key_id]
        if not found:
            raise NotFound(f"No message batch found with id '{id}'.")
        return found[0]

    def page_of_key(
        self, tenant: str, key_id: str, *, after: str = "", before: str = "", limit: int = 20
    ) -> list[Job]:
        """A page of a key's message batches, newest first: those next to the batch `after` or `before` in that order.
        Raises NotFound where there is no such batch.
        """
        query = sa.select(jobs).where(jobs.c.tenant == clean(tenant), _IS_ANTHROPIC)
        if edge := after or before:
            last = self.of_key(edge, tenant, key_id)
            place = sa.tuple_(last.created_s, last.id)
            query = query.where(_time < place if after else _time > place)
        order = (jobs.c.created_s, jobs.c.id)
        query = query.order_by(*(order if before else [column.desc() for column in order]))
        with self.engine.connect() as connection:
            rows = connection.execution_options(yield_per=PAGE_ROWS).execute(query).mappings()
            found = list(islice((job for job in map(_job, rows) if job.card.key_id == key_id), limit))
        return found[::-1] if before else found

    def unfinished(self, *origins: str) -> list[Job]:
        """Unfinished jobs of these origins, oldest first."""
        query = sa.select(jobs).where(jobs.c.state.not_in(ENDED), jobs.c.origin.in_(origins))
        return self._jobs(query.order_by(jobs.c.created_s, jobs.c.id))

    def change(self, job: Job, state: State, now_s: float) -> None:
        """Store the job's new state and its card, for its present owner only."""
        self._update(job.id, _moved(job, state, now_s), owner=job.owner)

    def end(self, job: Job, state: State, progress: Progress, now_s: float) -> None:
        """Store the job's last state, progress and release in one write, so that a reader sees all of them or none."""
        self._update(job.id, _moved(job, state, now_s) | _released(progress), owner=job.owner)

    def drop(self, job: Job) -> None:
        """Delete a job that was never begun, for its present owner only."""
        with self.engine.begin() as connection:
            connection.execute(sa.delete(jobs).where(jobs.c.id == job.id, jobs.c.owner == job.owner))

    def ask(self, id: str, wish: Wish, now_s: float) -> Job:
        """Ask for a pause, a resumption ('') or a cancellation; the runner obeys when it renews its lease. Raises
        NotFound, and CallerError where the job has ended or is being cancelled.
        """
        job = self.find(id)
        if job.state in ENDED:
            raise CallerError(f"the batch is {job.state}", code="batch_ended", status=409)
        if job.wish == "cancel" and wish != "cancel":
            raise CallerError("the batch is being cancelled already", code="batch_ended", status=409)
        values: dict[str, Any] = {"wish": wish}
        if wish == "cancel":
            job.card.times.setdefault("cancelling", now_s)
            values |= {"state": "cancelling", "payload": msgspec.json.encode(job.card).decode()}
        self._update(id, values)
        return self.find(id)

    # who runs it

    def claim(self, id: str, owner: str, now_s: float) -> Job | None:
        """Take the job's lease for `owner`; None where another runner holds it, or the job has ended."""
        job = self.find(id)
        if job.state in ENDED or self.is_held(job, now_s):
            return None
        claim = sa.update(jobs).where(
            jobs.c.id == id, jobs.c.owner == job.owner, jobs.c.lease_s == job.lease_s, jobs.c.state.not_in(ENDED)
        )
        with self.engine.begin() as connection:
            taken = connection.execute(claim.values(owner=owner, lease_s=now_s + LEASE_S)).rowcount
        return self.find(id) if taken else None

    def renew(self, job: Job, progress: Progress, now_s: float) -> Wish | None:
        """Renew the lease and store the progress; returns the users' present wish, or None where the lease is lost."""
        text = msgspec.json.encode(progress).decode()
        if not self._update(job.id, {"lease_s": now_s + LEASE_S, "progress": text}, owner=job.owner):
            return None
        with self.engine.connect() as connection:
            wish: Wish = connection.execute(sa.select(jobs.c.wish).where(jobs.c.id == job.id)).scalar_one()
        return wish

    def release(self, job: Job, progress: Progress) -> None:
        """Give the lease back, so that any runner may take the job."""
        self._update(job.id, _released(progress), owner=job.owner)

    def is_held(self, job: Job, now_s: float) -> bool:
        """Whether a runner holds the job's lease and isn't known to have died."""
        return bool(job.owner) and job.lease_s > now_s and not is_gone(job.owner)

    # its prompts

    def write_off(self, job: Job) -> int:
        """Count calls that a dead runner began without recording an end as spent at their worst case, and open their
        prompts again.

        Call it once the dead runner's records have been shipped. Returns the job's whole sum at risk, in nano-dollars.
        """
        unended = (job_items.c.job == job.id, job_items.c.state == "started")
        with self.engine.begin() as connection:
            worst = connection.execute(sa.select(sa.func.sum(job_items.c.worst_nanousd)).where(*unended)).scalar() or 0
            connection.execute(sa.update(job_items).where(*unended).values(state="open", worst_nanousd=0))
            more = jobs.c.at_risk_nanousd + int(worst)
            connection.execute(sa.update(jobs).where(jobs.c.id == job.id).values(at_risk_nanousd=more))
        job.at_risk_nanousd += int(worst)
        return job.at_risk_nanousd

    def items(self, id: str, *, answers: bool = False, after: int = -1) -> Iterator[Item]:
        """The prompts that were asked, in the order of their lines, from the line after `after`. Their answers are
        empty unless `answers`.
        """
        columns = [column for column in job_items.c if column.name not in ("job", "time_s")]
        if not answers:
            columns.remove(job_items.c.answer)
        at = after
        while True:
            query = sa.select(*columns).where(job_items.c.job == id, job_items.c.place > at)
            with self.engine.connect() as connection:
                rows = connection.execute(query.order_by(job_items.c.place).limit(PAGE_ROWS)).mappings().all()
            yield from (Item(**row) for row in rows)
            if len(rows) < PAGE_ROWS:
                return
            at = rows[-1]["place"]

    def ended_count(self, id: str) -> int:
        """Prompts whose answer or final failure is in the database."""
        query = sa.select(sa.func.count()).where(job_items.c.job == id, job_items.c.state.in_(ITEM_ENDED))
        with self.engine.connect() as connection:
            return int(connection.execute(query).scalar_one())

    def spent(self, id: str) -> int:
        """Nano-dollars that the job has cost by the journal."""
        query = sa.select(sa.func.sum(job_items.c.cost_nanousd)).where(job_items.c.job == id)
        with self.engine.connect() as connection:
            return int(connection.execute(query).scalar() or 0)

    # what waits at a provider

    def put_part(self, part: Part, now_s: float) -> None:
        kept = {name: getattr(part, name) for name in ("provider", "model", "lines", "upstream", "window_s")}
        row = {"id": part.id, "job": part.job, "state": part.state, "time_s": now_s,
               "worst_nanousd": part.worst_nanousd, "payload": msgspec.json.encode(kept).decode()}  # fmt: skip
        with self.engine.begin() as connection:
            put_row(connection, job_parts, row)

    def parts(self, id: str) -> Sequence[Part]:
        """The job's parts, oldest first."""
        query = sa.select(job_parts).where(job_parts.c.job == id).order_by(job_parts.c.time_s, job_parts.c.id)
        with self.engine.connect() as connection:
            rows = connection.execute(query).mappings().all()
        own = ("id", "job", "state", "worst_nanousd")
        return [Part(**{name: row[name] for name in own}, **msgspec.json.decode(row["payload"])) for row in rows]

    # inside

    def _update(self, id: str, values: Mapping[str, Any], owner: str | None = None) -> bool:
        """Store the values; False where there is no such job, or its owner is not `owner` (None: any owner)."""
        which = [jobs.c.id == id] if owner is None else [jobs.c.id == id, jobs.c.owner == owner]
        with self.engine.begin() as connection:
            return bool(connection.execute(sa.update(jobs).where(*which).values(**values)).rowcount)

    def _jobs(self, query: sa.Select[Any]) -> list[Job]:
        with self.engine.connect() as connection:
            return [_job(row) for row in connection.execute(query).mappings().all()]


def _moved(job: Job, state: State, now_s: float) -> dict[str, Any]:
    job.state = state
    job.card.times.setdefault(state, now_s)
    return {"state": state, "payload": msgspec.json.encode(job.card).decode()}


def _released(progress: Progress) -> dict[str, Any]:
    return {"owner": "", "lease_s": 0.0, "progress": msgspec.json.encode(progress).decode()}


def _row(job: Job) -> dict[str, Any]:
    row = {name: getattr(job, name) for name in job.__struct_fields__ if name not in ("card", "progress")}
    return row | {
        "payload": msgspec.json.encode(job.card).decode(),
        "progress": msgspec.json.encode(job.progress).decode(),
    }


def _job(row: Mapping[Any, Any]) -> Job:
    own = {name: row[name] for name in Job.__struct_fields__ if name not in ("card", "progress")}
    return Job(**own, card=_decode_card(row["payload"]), progress=_decode_progress(row["progress"]))
