"""The closed loop on the two shipped models, over HTTP: `python -m tests.bench.loop`.

A gateway with two real local models starts with a router that knows nothing. Questions with known answers are asked
with the official client, each answer gets its feedback, and after every batch the loop takes a turn. Then unseen
questions are put to both models, which gives full outcomes: the learnt router is compared on them with one trained on
full outcomes of the same number of questions (its own way of training, every model scored), with single models beside.
A candidate trained on scores turned upside down goes through the gate. At last the large model is silently replaced by
the small one, as a provider might, and the loop must notice and recover.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from openai import AsyncOpenAI

from gateway.config.load import load
from gateway.config.types import Config
from gateway.journal.record import AttemptRecord, CandidateRecord, DecisionRecord
from gateway.learn import loop as turns
from gateway.learn.dataset import log_of, read_log, training_data
from gateway.learn.gate import GateVerdict, judge
from gateway.learn.loop import Loop, LoopThresholds, StepReport
from gateway.learn.retrain import lately, tuned
from gateway.learn.whatif import decided, widened
from local_models.tasks import Question, held_out_questions, is_right
from routers.artifact import Card
from routers.features import shipped_featurizer
from routers.fit import fit_learned
from routers.intervals import percentile_interval, resampled_counts
from routers.ope import Array
from routers.plugin import PluginRouter
from routers.registry import save_router
from tests.live import served
from tests.ports import free_port

MODELS = ("tiny-small", "tiny-large")
COST_WEIGHT = 0.5
BATCH = 50
CONFIG = """
[server]
port = {port}
admin_port = {admin}
run_dir = "{folder}/run"
[storage]
url = "sqlite:///{folder}/headgate.db"
[telemetry]
log_level = "error"
[[providers]]
name = "home"
kind = "local"
[[models]]
name = "tiny-small"
provider = "home"
input_usd_per_mtok = 0.05
output_usd_per_mtok = 0.20
context_tokens = 512
max_output_tokens = 64
[[models]]
name = "tiny-large"
provider = "home"
upstream_name = "{large}"
input_usd_per_mtok = 0.50
output_usd_per_mtok = 2.00
context_tokens = 512
max_output_tokens = 64
[[routes]]
name = "auto"
models = ["tiny-small", "tiny-large"]
router = "linear"
cost_weight = {weight}
explore = 0.2
[[routes]]
name = "even"
models = ["tiny-small", "tiny-large"]
router = "weighted"
store_text = true
"""


@dataclass(slots=True)
class Bench:
    folder: Path
    port: int
    admin: int
    terms: LoopThresholds

    def configure(self, large: str) -> Path:
        path = self.folder / "headgate.toml"
        path.write_text(
            CONFIG.format(folder=self.folder, port=self.port, admin=self.admin, large=large, weight=COST_WEIGHT)
        )
        return path

    @asynccontextmanager
    async def running(self, large: str = "tiny-large") -> AsyncIterator[AsyncOpenAI]:
        path = self.configure(large)
        async with served(path):
            client = AsyncOpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="none", max_retries=1)
            yield client
            await client.close()

    @property
    def config(self) -> Config:
        return load(str(self.folder / "headgate.toml"), {})


async def ask(client: AsyncOpenAI, model: str, question: Question, *, feedback: bool) -> tuple[float, float, float]:
    """Right or wrong, dollars, output tokens."""
    raw = await client.chat.completions.with_raw_response.create(
        model=model, messages=[{"role": "user", "content": question.prompt}], temperature=0, max_tokens=48
    )
    answer = raw.parse()
    right = float(is_right(question, answer.choices[0].message.content or ""))
    decision = raw.headers["x-headgate-decision-id"]
    if feedback:
        await client.post("/feedback", body={"decision_id": decision, "score": right}, cast_to=object)
    tokens = answer.usage.completion_tokens if answer.usage else 0
    return right, float(raw.headers["x-headgate-cost-usd"]), float(tokens)


async def ask_all(
    client: AsyncOpenAI, model: str, questions: list[Question], *, feedback: bool = False
) -> list[tuple[float, float, float]]:
    gate = asyncio.Semaphore(8)

    async def one(question: Question) -> tuple[float, float, float]:
        async with gate:
            return await ask(client, model, question, feedback=feedback)

    return await asyncio.gather(*(one(question) for question in questions))


async def shipped(loop: Loop, expected: int, within_s: float = 20.0) -> None:
    """Until the control process has brought that many scored decisions into the database."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            if int(read_log(loop.store.engine, route="auto").labelled.sum()) >= expected:
                return
        except ValueError:
            pass
        await asyncio.sleep(0.2)


async def learn(
    client: AsyncOpenAI, loop: Loop, questions: list[Question], until: str, done: int
) -> tuple[list[StepReport], int]:
    """Batches with feedback and a turn after each, until a turn of that name; "": with all questions."""
    told: list[StepReport] = []
    for start in range(0, len(questions), BATCH):
        batch = questions[start : start + BATCH]
        await ask_all(client, "auto", batch, feedback=True)
        done += len(batch)
        await shipped(loop, done)
        told.append(loop.step(time.time()))
        print(f"  {done:5d} requests: {told[-1]}", file=sys.stderr, flush=True)
        if told[-1].action == until:
            break
    await asyncio.sleep(1.2)  # workers follow within a second
    return told, done


@dataclass(frozen=True, slots=True)
class Full:
    """Every model's outcome on every question, (n, 2) each."""

    questions: list[Question]
    score: Array
    cost: Array
    output_tokens: Array


async def full_outcomes(client: AsyncOpenAI, questions: list[Question]) -> Full:
    found = np.array([await ask_all(client, model, questions) for model in MODELS]).transpose(2, 1, 0)
    return Full(questions, found[0], found[1], found[2])


def chosen_worth(loop: Loop, artifact: str, test: Full) -> dict[str, Any]:
    """Quality and cost of that router on questions with full outcomes, without exploration; "": the live one."""
    policy = loop.policy(artifact)
    policy = replace(policy, knobs=replace(policy.knobs, explore=False))
    log = widened(log_of([(_blank(question), None) for question in test.questions]), MODELS)
    chances = decided(policy, log)[:, [log.models.index(model) for model in MODELS]]
    quality, usd = (chances * test.score).sum(1), (chances * test.cost).sum(1)
    return {"quality": quality, "cost": usd, "to_large": float(chances[:, 1].mean())}


def _blank(question: Question) -> DecisionRecord:
    """A question as the journal would hold it."""
    tokens = len(question.prompt) // 4 + 1
    return DecisionRecord(
        id=question.prompt, time_s=1.0, model="tiny-small", status=200, turns=1, input_tokens=tokens,
        prompt_text=question.prompt, answered_model="tiny-small", attempts=(AttemptRecord(model="tiny-small"),),
        candidates=(CandidateRecord(model="tiny-small", probability=1.0),),
    )  # fmt: skip


def full_router(full: Full, path: Path, *, spoilt: bool = False) -> Path:
    """Trained on full outcomes, by the loop's own way of training; `spoilt`: on scores turned upside down."""
    data, x = training_data(log_of([(_blank(question), 1.0) for question in full.questions]))
    none = np.full_like(full.score, np.nan)
    whole = replace(
        data, models=MODELS, scores=1.0 - full.score if spoilt else full.score, cost_usd=full.cost,
        checked_cost_usd=full.cost, output_tokens=full.output_tokens, input_tokens=none, latency_s=none,
        confidence=none, propensity=none,
    )  # fmt: skip
    featurizer = shipped_featurizer()
    learned = fit_learned(tuned(whole.scores, x, list(MODELS)), whole, x, featurizer.layout)
    router = PluginRouter("linear", path.stem, featurizer.version, learned)
    save_router(path, router, Card("linear", path.stem, router.features_version, MODELS))
    return path


def ratio(ours: Array, theirs: Array, seed: int = 0) -> list[float]:
    """Ratio of means with its 95 % bootstrap interval over questions, paired."""
    counts = resampled_counts(len(ours), 1000, seed)
    found = percentile_interval(ours.mean() / theirs.mean(), (counts @ ours) / (counts @ theirs))
    return [found.value, found.low, found.high]


def gate_verdict(loop: Loop, artifact: Path) -> GateVerdict:
    """What the gate says of a candidate that others made, on all rounds."""
    incumbent = loop.policy()
    models = [one.model for one in incumbent.candidates]
    log = lately(widened(loop.heard(), models))[1]
    target = decided(loop.policy(str(artifact)), log)
    return judge(log, target, decided(incumbent, log), loop.reward(log, incumbent))


async def run(count: int, judged: int, seed: int) -> dict[str, Any]:
    pool = list({q.prompt: q for q in held_out_questions(8 * count, seed=seed)}.values())
    test, rest = pool[:judged], pool[judged:]
    first, second, third = rest[:count], rest[count : 2 * count], rest[2 * count : 3 * count]
    terms = LoopThresholds(
        min_scored=100, retrain_after=150, shadow_rounds=40, canary_share=0.3, canary_rounds=30, patience=90
    )
    report: dict[str, Any] = {"questions": [len(first), len(second), len(third), len(test)]}
    with tempfile.TemporaryDirectory(prefix="hgloop") as name:
        bench = Bench(Path(name), free_port(), free_port(), terms)
        async with bench.running() as client:
            loop = Loop.opened(bench.config, "auto", terms)
            outcomes = await full_outcomes(client, test)
            dear = float(outcomes.cost[:, 1].mean())
            report["models"] = {
                model: {"quality": float(outcomes.score[:, j].mean()), "usd": float(outcomes.cost[:, j].mean())}
                for j, model in enumerate(MODELS)
            }
            before = chosen_worth(loop, "", outcomes)
            told, done = await learn(client, loop, first, "", 0)
            full = await full_outcomes(client, third[:done])
            learnt = chosen_worth(loop, "", outcomes)
            informed = chosen_worth(loop, str(full_router(full, bench.folder / "full.safetensors")), outcomes)
            report |= {"requests": done, "learning": compare(before, learnt, informed, dear), "turns": brief(told)}
            bad = full_router(full, bench.folder / "bad.safetensors", spoilt=True)
            report["bad_candidate"] = gate_verdict(loop, bad).reason
        async with bench.running("tiny-small") as client:
            outcomes = await full_outcomes(client, test)
            fallen = chosen_worth(loop, "", outcomes)
            told, after = await learn(client, loop, second, turns.PROMOTED, done)
            recovered = chosen_worth(loop, "", outcomes)
            noticed = next((i for i, one in enumerate(told) if any(a.kind == "model drift" for a in one.alarms)), None)
            report["drift"] = {
                "noticed_after_requests": None if noticed is None else (noticed + 1) * BATCH,
                "recovered_after_requests": after - done if told[-1].action == turns.PROMOTED else None,
                "worth": [worth(fallen, dear), worth(recovered, dear)],
                "usd": [float(one["cost"].mean()) for one in (fallen, recovered)],
                "quality": [float(one["quality"].mean()) for one in (fallen, recovered)],
                "turns": brief(told),
            }
        loop.store.close()
    return report


def brief(told: list[StepReport]) -> list[str]:
    return [f"{one.action}: {one.reason}" for one in told]


def worth(found: dict[str, Any], reference_usd: float) -> float:
    """Quality minus the price of money at the route's cost weight."""
    return float((found["quality"] - 0.2 * found["cost"] / reference_usd).mean())


def compare(before: dict[str, Any], learnt: dict[str, Any], informed: dict[str, Any], dear: float) -> dict[str, Any]:
    """The router before, the one learnt from feedback, and the one trained on full outcomes."""
    per_question = [one["quality"] - 0.2 * one["cost"] / dear for one in (learnt, informed)]
    return {
        "worth": [worth(one, dear) for one in (before, learnt, informed)],
        "worth_ratio": ratio(*per_question), "quality_ratio": ratio(learnt["quality"], informed["quality"]),
        "cost_ratio": ratio(learnt["cost"], informed["cost"]),
        "to_large": [one["to_large"] for one in (before, learnt, informed)],
        "quality": [float(one["quality"].mean()) for one in (before, learnt, informed)],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.loop", description=__doc__)
    parser.add_argument("--questions", type=int, default=1500)
    parser.add_argument("--judged", type=int, default=400)
    parser.add_argument("--seed", type=int, default=11)
    args = parser.parse_args()
    print(json.dumps(asyncio.run(run(args.questions, args.judged, args.seed)), indent=1))


if __name__ == "__main__":
    main()
