"""`headgate cascade tiny`: measures cascades on the two shipped models over real HTTP, with every answer checked.

On learning questions, which both models answer, a threshold is chosen that sends a budgeted share of them to the large
model, and a router and a cascade are trained to keep a share of its right answers. Both cascades, and sampling with a
fixed and an adaptive number of tries, are then measured on other questions. So are solved cases shown to the small
model, refined answers, drafting by steps, and samples that a verifier picks from. The report also has those that don't
pay.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from math import ceil, exp, log
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from rich.console import Console

from cascade.promise import GRID
from cascade.prompts import demonstrated
from cascade.refined import SUFFIX, Pair, ranked
from gateway.demo.run import HOME, Demo, free_port
from gateway.tiny import chains, samples, shown, steps
from gateway.tiny.figures import Figure, difference, mean, ratio
from gateway.tiny.reply import Reply
from gateway.tiny.steps import LARGE, SMALL
from local_models.tasks import Question, held_out_questions, is_right

BUDGET = 0.32
"""Share of learning questions that the threshold may send to the large model."""
SHARE = 0.99
"""Share of the large model's accuracy that the trained cascade must reach."""
TRIES = 5
IN_FLIGHT = 8

ROUTES = """
[[routes]]
name = "cascade"
models = ["tiny-small", "tiny-large"]
router = "cheapest"
cascade = "confidence"
accept_at = {accept_at}
[[routes]]
name = "trained"
models = ["tiny-small", "tiny-large"]
router = "{router}"
cascade = "{cascade}"
min_quality = {share}
[[routes]]
name = "vote"
models = ["tiny-small"]
router = "cheapest"
cascade = "self-consistency"
max_attempts = 8
[[routes]]
name = "best-of"
models = ["tiny-small"]
router = "cheapest"
cascade = "best-of"
accept_at = 0.9
max_attempts = 8
[[routes]]
name = "tiny-small+refine"
models = ["tiny-small"]
router = "cheapest"
cascade = "refine"
accept_at = {accept_at}
[[routes]]
name = "tiny-large+refine"
models = ["tiny-large"]
router = "cheapest"
cascade = "refine"
accept_at = {accept_at}
"""


async def measure(queries: int, *, seed: int, console: Console) -> dict[str, Any]:
    """The report on `queries` questions; training and thresholds use as many others."""
    questions = list({q.prompt: q for q in held_out_questions(8 * queries, seed=seed)}.values())[: 2 * queries]
    learning, judging = questions[: len(questions) // 2], questions[len(questions) // 2 :]
    with tempfile.TemporaryDirectory(prefix="headgate-tiny-") as name:
        demo = Demo(Path(name), console, free_port(), free_port())
        write(demo)
        async with demo.gateway():
            learnt = [await ask(demo, SMALL, learning), await ask(demo, LARGE, learning)]
        accept_at = threshold(learnt[0])
        cases = demo.folder / "cases.jsonl"
        shown.write_cases(cases, learning, learnt[1])
        write(demo, accept_at, *await train(demo, learning, learnt), cases=str(cases))
        async with demo.gateway():
            small, large = await ask(demo, SMALL, judging), await ask(demo, LARGE, judging)
            climbed = {name: await ask(demo, name, judging) for name in ("cascade", "trained")}
            tries = [await ask(demo, SMALL, judging, sample=1 + one) for one in range(TRIES)]
            adaptive = {name: await ask(demo, name, judging, sample=0) for name in ("vote", "best-of")}
            with_cases = {name: await ask(demo, name, judging) for name in shown.NAMES}
            await ask(demo, "climbed-remembered", judging[::2])
            with_cases["climbed-remembered"] = await ask(demo, "climbed-remembered", judging)
            refined = {name: await ask(demo, name + SUFFIX, judging) for name in (SMALL, LARGE)}
            in_sight = await ask(demo, SMALL, judging, answered=True)
    return {
        "n_queries": len(judging),
        "small_accuracy": mean(rights(small)),
        "large_accuracy": mean(rights(large)),
        "accept_at": accept_at,
        **{name: against(replies, large) for name, replies in climbed.items()},
        "fixed_tries": {f"{k}": mean(voted(tries[:k], judging)) for k in range(1, TRIES + 1)},
        **{name: sampled(replies, tries, judging) for name, replies in adaptive.items()},
        "local": {"target": SHARE, **{name: kept_local(replies, large, judging) for name, replies in climbed.items()}},
        "demonstrations": shown.report(small, large, with_cases, in_sight),
        "refinement": ranked({SMALL: pair(small, refined[SMALL]), LARGE: pair(large, refined[LARGE])}),
        "stepwise": steps.report(learning, judging, SHARE),
        "chains": chains.report(min(len(judging), 200), seed, SHARE),
        "sampling": samples.report(learning, judging),
    }


def write(
    demo: Demo, accept_at: float = 0.5, router: str = "cheapest", cascade: str = "none", *, cases: str = ""
) -> None:
    """Write the configuration; without `cases` it has no routes that show solved cases."""
    config = (HOME + ROUTES + (shown.ROUTES if cases else "")).format(
        port=demo.port, admin_port=demo.admin_port, folder=demo.folder, accept_at=accept_at, router=router,
        cascade=cascade, share=SHARE, cases=cases, most=shown.MOST,
    )  # fmt: skip
    demo.config.write_text(config)


async def train(demo: Demo, questions: Sequence[Question], replies: Sequence[Sequence[Reply]]) -> tuple[str, str]:
    """Train a router and a cascade on both models' replies, by the commands that operators use; return their paths."""
    data = demo.folder / "answers"
    write_data(data, questions, replies)
    router, cascade = str(demo.folder / "router.safetensors"), str(demo.folder / "cascade.safetensors")
    await demo.command("train", "--data", str(data), "--router", "linear", "--out", router)
    await demo.command("cascade", "train", "--data", str(data), "--router", "linear", "--out", cascade)
    return router, cascade


def write_data(folder: Path, questions: Sequence[Question], replies: Sequence[Sequence[Reply]]) -> None:
    """Write both models' replies as outcome data, where a confidence is a log-probability."""
    import pyarrow
    from pyarrow import parquet

    folder.mkdir()
    ids = [f"q{place}" for place in range(len(questions))]
    queries = {"query_id": ids, "task": [""] * len(ids), "split": ["train"] * len(ids)}
    parquet.write_table(pyarrow.table({**queries, "text": [q.prompt for q in questions]}), folder / "queries.parquet")
    rows = [(id, reply) for id, *both in zip(ids, *replies, strict=True) for reply in both]
    outcomes = {
        "query_id": [id for id, _ in rows],
        "model": [reply.model for _, reply in rows],
        "score": [float(reply.right) for _, reply in rows],
        "cost_usd": [reply.cost_usd for _, reply in rows],
        "input_tokens": [reply.tokens[0] for _, reply in rows],
        "output_tokens": [reply.tokens[1] for _, reply in rows],
        "confidence": [log(max(reply.confidence, 1e-30)) for _, reply in rows],
        "response": [reply.text for _, reply in rows],
    }
    parquet.write_table(pyarrow.table(outcomes), folder / "outcomes.parquet")


async def ask(
    demo: Demo, model: str, questions: Sequence[Question], *, sample: int | None = None, answered: bool = False
) -> list[Reply]:
    """The reply to each question. With `sample`, which is the seed, it is sampled at a temperature. With `answered`,
    the question and its right answer come once before in the same chat.
    """
    gate = asyncio.Semaphore(IN_FLIGHT)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{demo.port}/v1", timeout=60.0) as client:

        async def one(question: Question) -> Reply:
            async with gate:
                return await _reply(client, model, question, sample, answered)

        return list(await asyncio.gather(*map(one, questions)))


async def _reply(
    client: httpx.AsyncClient, model: str, question: Question, sample: int | None, answered: bool
) -> Reply:
    cases = [(question.prompt, question.answer)] if answered else []
    body: dict[str, Any] = {
        "model": model, **demonstrated([{"role": "user", "content": question.prompt}], cases), "max_tokens": 48,
        "logprobs": True, "temperature": 0.0 if sample is None else 0.7, "seed": sample,
    }  # fmt: skip
    answer = await client.post("/chat/completions", json={k: v for k, v in body.items() if v is not None})
    answer.raise_for_status()
    content = answer.json()
    choice = content["choices"][0]
    text = choice["message"]["content"] or ""
    logprobs = [token["logprob"] for token in (choice.get("logprobs") or {}).get("content") or ()]
    attempted = [model]
    if model not in (SMALL, LARGE):
        record = await client.get(f"/decisions/{answer.headers['x-headgate-decision-id']}")
        attempted = [attempt["model"] for attempt in record.json()["attempts"]]
    return Reply(
        text, is_right(question, text), answer.headers["x-headgate-model"], len(attempted),
        float(answer.headers["x-headgate-cost-usd"]),
        exp((sum(logprobs) / len(logprobs) + min(logprobs)) / 2) if logprobs else 0.0, LARGE in attempted,
        (content["usage"]["prompt_tokens"], content["usage"]["completion_tokens"]),
    )  # fmt: skip


def threshold(small: Sequence[Reply]) -> float:
    """The highest threshold that rejects at most a share `BUDGET` of these replies, chosen without knowing which are
    right.
    """
    confidence = np.array([reply.confidence for reply in small])
    return float(max((t for t in GRID[1:] if (confidence < t).mean() <= BUDGET), default=GRID[-1]))


def rights(replies: Sequence[Reply]) -> list[float]:
    return [float(reply.right) for reply in replies]


def against(climbed: Sequence[Reply], large: Sequence[Reply]) -> dict[str, Figure]:
    """A cascade compared with always asking the large model."""
    return {
        "accuracy": mean(rights(climbed)),
        "share_of_large": ratio(rights(climbed), rights(large)),
        "large_share": mean([float(reply.large) for reply in climbed]),
        "cost_ratio": ratio([reply.cost_usd for reply in climbed], [reply.cost_usd for reply in large]),
    }


def kept_local(climbed: Sequence[Reply], large: Sequence[Reply], questions: Sequence[Question]) -> dict[str, Any]:
    """Share of requests that never reach the large model, which would be the remote one (Crayon), overall and by kind.
    """
    stayed = [float(not reply.large) for reply in climbed]
    kinds = sorted({question.kind for question in questions})
    return {
        "kept_local": mean(stayed),
        "share_of_large": ratio(rights(climbed), rights(large)),
        "kept_local_of": {
            kind: mean([one for one, question in zip(stayed, questions, strict=True) if question.kind == kind])
            for kind in kinds
        },
    }


def pair(direct: Sequence[Reply], refined: Sequence[Reply]) -> Pair:
    """Scores and costs of a model's answers and of its refined answers."""
    (score, cost_usd), (better, paid_usd) = (
        np.array([(float(reply.right), reply.cost_usd) for reply in replies]).T for replies in (direct, refined)
    )
    return Pair(score, better, cost_usd, paid_usd)


def voted(tries: Sequence[Sequence[Reply]], questions: Sequence[Question]) -> list[float]:
    """For each question 1 where the most frequent of a fixed number of answers is right, else 0; of equally frequent
    answers the first counts.
    """
    scores = []
    for place, question in enumerate(questions):
        texts = [replies[place].text for replies in tries]
        scores.append(float(is_right(question, max(texts, key=texts.count))))
    return scores


def sampled(
    replies: Sequence[Reply], tries: Sequence[Sequence[Reply]], questions: Sequence[Question]
) -> dict[str, Figure]:
    """An adaptive number of tries compared with the same number for every question: the largest number, and the
    adaptive one's mean, rounded up.
    """
    calls = [float(reply.calls) for reply in replies]
    fixed = min(ceil(sum(calls) / len(calls)), len(tries))
    return {
        "accuracy": mean(rights(replies)),
        "calls": mean(calls),
        "saved": mean([1.0 - one / len(tries) for one in calls]),
        "accuracy_minus_all_tries": difference(rights(replies), voted(tries, questions)),
        f"accuracy_minus_{fixed}_tries": difference(rights(replies), voted(tries[:fixed], questions)),
    }
