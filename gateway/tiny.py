"""`headgate cascade tiny`: what cascades are worth on the two shipped models, over real HTTP, every answer checked.

On learning questions, answered by both models, a threshold is chosen that sends a budgeted share of them to the large
model, and a router and a cascade are trained to keep a share of its right answers. Both cascades, and sampling with a
fixed and an adaptive number of tries, are then measured on other questions; so are solved cases shown to the small
model, refined answers, drafting by steps, and samples that a verifier picks from, whether they pay or not.
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
from gateway import tiny_chains, tiny_samples, tiny_shown, tiny_steps
from gateway.demo import HOME, Demo, free_port
from gateway.tiny_figures import Figure, difference, mean, ratio
from gateway.tiny_reply import Reply
from gateway.tiny_steps import LARGE, SMALL
from local_models.tasks import Question, held_out_questions, is_right

BUDGET = 0.32
"""Share of learning questions that the threshold may send to the large model."""
SHARE = 0.99
"""Of the large model's right answers, that the trained cascade is to keep."""
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
    """Figures on `queries` questions; what is learnt is learnt from as many others."""
    questions = list({q.prompt: q for q in held_out_questions(8 * queries, seed=seed)}.values())[: 2 * queries]
    learning, judging = questions[: len(questions) // 2], questions[len(questions) // 2 :]
    with tempfile.TemporaryDirectory(prefix="headgate-tiny-") as name:
        demo = Demo(Path(name), console, free_port(), free_port())
        write(demo)
        async with demo.gateway():
            taught = [await ask(demo, SMALL, learning), await ask(demo, LARGE, learning)]
        accept_at = threshold(taught[0])
        cases = demo.folder / "cases.jsonl"
        tiny_shown.write_cases(cases, learning, taught[1])
        write(demo, accept_at, *await train(demo, learning, taught), cases=str(cases))
        async with demo.gateway():
            small, large = await ask(demo, SMALL, judging), await ask(demo, LARGE, judging)
            climbed = {name: await ask(demo, name, judging) for name in ("cascade", "trained")}
            tries = [await ask(demo, SMALL, judging, sample=1 + one) for one in range(TRIES)]
            adaptive = {name: await ask(demo, name, judging, sample=0) for name in ("vote", "best-of")}
            shown = {name: await ask(demo, name, judging) for name in tiny_shown.NAMES}
            await ask(demo, "climbed-remembered", judging[::2])
            shown["climbed-remembered"] = await ask(demo, "climbed-remembered", judging)
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
        "demonstrations": tiny_shown.report(small, large, shown, in_sight),
        "refinement": ranked({SMALL: pair(small, refined[SMALL]), LARGE: pair(large, refined[LARGE])}),
        "stepwise": tiny_steps.report(learning, judging, SHARE),
        "chains": tiny_chains.report(min(len(judging), 200), seed, SHARE),
        "sampling": tiny_samples.report(learning, judging),
    }


def write(
    demo: Demo, accept_at: float = 0.5, router: str = "cheapest", cascade: str = "none", *, cases: str = ""
) -> None:
    filled = (HOME + ROUTES + (tiny_shown.ROUTES if cases else "")).format(
        port=demo.port, admin_port=demo.admin_port, folder=demo.folder, accept_at=accept_at, router=router,
        cascade=cascade, share=SHARE, cases=cases, most=tiny_shown.MOST,
    )  # fmt: skip
    demo.config.write_text(filled)


async def train(demo: Demo, questions: Sequence[Question], taught: Sequence[Sequence[Reply]]) -> tuple[str, str]:
    """A router and a cascade from answers of both models, by the commands an operator runs; their paths."""
    data = demo.folder / "answers"
    write_data(data, questions, taught)
    router, cascade = str(demo.folder / "router.safetensors"), str(demo.folder / "cascade.safetensors")
    await demo.command("train", "--data", str(data), "--router", "linear", "--out", router)
    await demo.command("cascade", "train", "--data", str(data), "--router", "linear", "--out", cascade)
    return router, cascade


def write_data(folder: Path, questions: Sequence[Question], taught: Sequence[Sequence[Reply]]) -> None:
    """Outcome data as any user would bring it; a confidence is a log-probability there."""
    import pyarrow
    from pyarrow import parquet

    folder.mkdir()
    ids = [f"q{place}" for place in range(len(questions))]
    asked = {"query_id": ids, "task": [""] * len(ids), "split": ["train"] * len(ids)}
    parquet.write_table(pyarrow.table({**asked, "text": [q.prompt for q in questions]}), folder / "queries.parquet")
    replies = [(id, reply) for id, *both in zip(ids, *taught, strict=True) for reply in both]
    outcomes = {
        "query_id": [id for id, _ in replies],
        "model": [reply.model for _, reply in replies],
        "score": [float(reply.right) for _, reply in replies],
        "cost_usd": [reply.cost_usd for _, reply in replies],
        "input_tokens": [reply.tokens[0] for _, reply in replies],
        "output_tokens": [reply.tokens[1] for _, reply in replies],
        "confidence": [log(max(reply.confidence, 1e-30)) for _, reply in replies],
        "response": [reply.text for _, reply in replies],
    }
    parquet.write_table(pyarrow.table(outcomes), folder / "outcomes.parquet")


async def ask(
    demo: Demo, model: str, questions: Sequence[Question], *, sample: int | None = None, answered: bool = False
) -> list[Reply]:
    """Every question once; with `sample` at a temperature, in the draw of that number; `answered`: asked and answered
    once before in the same chat.
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
    told = answer.json()
    choice = told["choices"][0]
    text = choice["message"]["content"] or ""
    sure = [token["logprob"] for token in (choice.get("logprobs") or {}).get("content") or ()]
    asked = [model]
    if model not in (SMALL, LARGE):
        record = await client.get(f"/decisions/{answer.headers['x-headgate-decision-id']}")
        asked = [attempt["model"] for attempt in record.json()["attempts"]]
    return Reply(
        text, is_right(question, text), answer.headers["x-headgate-model"], len(asked),
        float(answer.headers["x-headgate-cost-usd"]),
        exp((sum(sure) / len(sure) + min(sure)) / 2) if sure else 0.0, LARGE in asked,
        (told["usage"]["prompt_tokens"], told["usage"]["completion_tokens"]),
    )  # fmt: skip


def threshold(small: Sequence[Reply]) -> float:
    """The highest that sends no more than `BUDGET` of these answers back; it takes no truth to choose it."""
    sure = np.array([reply.confidence for reply in small])
    return float(max((t for t in GRID[1:] if (sure < t).mean() <= BUDGET), default=GRID[-1]))


def rights(replies: Sequence[Reply]) -> list[float]:
    return [float(reply.right) for reply in replies]


def against(climbed: Sequence[Reply], large: Sequence[Reply]) -> dict[str, Figure]:
    """A cascade beside always asking the large model."""
    return {
        "accuracy": mean(rights(climbed)),
        "share_of_large": ratio(rights(climbed), rights(large)),
        "large_share": mean([float(reply.large) for reply in climbed]),
        "cost_ratio": ratio([reply.cost_usd for reply in climbed], [reply.cost_usd for reply in large]),
    }


def kept_local(climbed: Sequence[Reply], large: Sequence[Reply], questions: Sequence[Question]) -> dict[str, Any]:
    """Share of requests that the large model, which would be the remote one, never sees (Crayon); of each kind too."""
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
    """A model's answers beside its refined ones."""
    (score, cost_usd), (better, paid_usd) = (
        np.array([(float(reply.right), reply.cost_usd) for reply in replies]).T for replies in (direct, refined)
    )
    return Pair(score, better, cost_usd, paid_usd)


def voted(tries: Sequence[Sequence[Reply]], questions: Sequence[Question]) -> list[float]:
    """1 where the most frequent of a fixed number of answers is right; of equally frequent ones the first counts."""
    found = []
    for place, question in enumerate(questions):
        texts = [replies[place].text for replies in tries]
        found.append(float(is_right(question, max(texts, key=texts.count))))
    return found


def sampled(
    replies: Sequence[Reply], tries: Sequence[Sequence[Reply]], questions: Sequence[Question]
) -> dict[str, Figure]:
    """Tries as each question needs them, beside as many for all: the most there may be, and what they took on average,
    rounded up.
    """
    calls = [float(reply.calls) for reply in replies]
    alike = min(ceil(sum(calls) / len(calls)), len(tries))
    return {
        "accuracy": mean(rights(replies)),
        "calls": mean(calls),
        "saved": mean([1.0 - one / len(tries) for one in calls]),
        "accuracy_minus_all_tries": difference(rights(replies), voted(tries, questions)),
        f"accuracy_minus_{alike}_tries": difference(rights(replies), voted(tries[:alike], questions)),
    }
