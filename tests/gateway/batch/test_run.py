"""A planned job, run with a real gateway and a real upstream."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway.batch.files import CHUNK_BYTES, named_in
from gateway.batch.types import Arm, Duplicate
from tests.gateway.batch.made import Runner, carried, chat, estimates, plan
from tests.live import live

SMALL, LARGE = Arm("small"), Arm("large")
QUALITY = {"small": 0.6, "large": 0.9}


async def test_every_prompt_is_answered_once_at_the_journals_cost(tmp_path: Path) -> None:
    """Answers have their custom_id, a duplicate has its prompt's answer, and the cost is the sum of the journal's
    decisions.
    """
    bodies = [chat("auto", f"say {number}", max_tokens=8) for number in range(40)]
    cost = {"small": 2e-5, "large": 4e-5}
    async with live(tmp_path, models=["small", "large"], routes=[AUTO]) as gateway:
        made = plan(tmp_path / "plan", bodies, estimates([SMALL, LARGE], 40, QUALITY, cost),
                    budget_usd=0.01, duplicates=[Duplicate(41, "row-41", 3)])  # fmt: skip
        done = await carried(gateway.services, made, tmp_path)
        await gateway.rest()
        rows = done.jobs.items(done.job.id)
        decisions = [await gateway.decision(row.decision_id) for row in rows]
    assert done.job.state == "completed" and done.errors == []
    assert sorted(line["custom_id"] for line in done.output) == sorted(f"row-{n}" for n in range(1, 42))
    said = {line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"] for line in done.output}
    assert said["row-4"] == said["row-41"] == "say 3" and said["row-40"] == "say 39"
    assert sum(one.cost_nanousd for one in decisions) == round(done.spent_usd * 1e9) > 0
    assert {one.model for one in decisions} == {"large"} and gateway.upstream.seen.requests == 40


AUTO = {"name": "auto", "models": ["small", "large"], "router": "cheapest"}


async def test_the_plans_samples_are_drawn_and_voted_on(tmp_path: Path) -> None:
    """With best of three each prompt has three paid calls and the answer that two of them gave."""
    scripts = {"small": [{"text": text} for text in ("Paris", "Rome", "Rome") * 10]}
    bodies = [chat("auto", f"which {number}?", max_tokens=8) for number in range(6)]
    once, thrice = Arm("small"), Arm("small", samples=3)
    quality, cost = {once.label: 0.5, thrice.label: 0.8}, {once.label: 1e-5, thrice.label: 3e-5}
    async with live(tmp_path, scripts=scripts, models=["small", "large"], routes=[AUTO]) as gateway:
        made = plan(tmp_path / "plan", bodies, estimates([once, thrice], 6, quality, cost), budget_usd=0.01)
        done = await carried(gateway.services, made, tmp_path, concurrency=1)
        items = list(done.jobs.items(done.job.id))
        decision = await gateway.decision(items[0].decision_id)
    said = {line["response"]["body"]["choices"][0]["message"]["content"] for line in done.output}
    assert len(done.output) == 6 and said == {"Rome"} and gateway.upstream.seen.requests == 18
    assert len(decision.attempts) == 3 and sum(one.cost_nanousd for one in decision.attempts) == items[0].cost_nanousd
    keys = [one["headers"]["idempotency-key"] for one in gateway.upstream.seen.recent]
    assert len(set(keys)) == 18, "two samples under one key would be one answer"


async def test_a_cascade_escalates_poor_answers(tmp_path: Path) -> None:
    """With `cascade`, the planned model answers first, and unsure answers are escalated within the budget."""
    scripts = {"small": [{"text": "perhaps", "logprob": -3.0}], "large": [{"text": "surely", "logprob": -0.01}]}
    models = [{"name": "small", "logprobs": True}, {"name": "large", "logprobs": True, "output_usd_per_mtok": 9.0}]
    route = {**AUTO, "cascade": "confidence", "accept_at": 0.8}
    bodies = [chat("auto", f"which {number}?", max_tokens=8) for number in range(5)]
    table = estimates([SMALL, LARGE], 5, QUALITY, {"small": 1e-5, "large": 2e-2})
    async with live(tmp_path, scripts=scripts, models=models, routes=[route]) as gateway:
        made = plan(tmp_path / "plan", bodies, table, budget_usd=0.01)
        done = await carried(gateway.services, made, tmp_path, cascade=True)
        item = next(done.jobs.items(done.job.id))
        decision = await gateway.decision(item.decision_id)
    assert {line["response"]["body"]["choices"][0]["message"]["content"] for line in done.output} == {"surely"}
    assert [one.model for one in decision.attempts] == ["small", "large"] and decision.answered_model == "large"
    assert done.spent_usd <= 0.01


async def test_a_budget_below_the_worst_case_is_reported(tmp_path: Path) -> None:
    """A planned answer may cost more than the budget, so another model answers, and the job says why."""
    models = [{"name": "small"}, {"name": "large", "output_usd_per_mtok": 50.0}]
    bodies = [chat("auto", f"say {number}", max_tokens=1000) for number in range(3)]
    cost = {"small": 1e-5, "large": 2e-5}
    async with live(tmp_path, models=models, routes=[AUTO]) as gateway:
        made = plan(tmp_path / "plan", bodies, estimates([SMALL, LARGE], 3, QUALITY, cost), budget_usd=0.02)
        done = await carried(gateway.services, made, tmp_path)
    assert len(done.output) == 3 and done.job.progress.by_model == {"small": 3}
    assert done.job.progress.warning.startswith("3 prompts went to another model than planned")


async def test_a_prompt_that_cannot_be_answered_fails_alone(tmp_path: Path) -> None:
    """These are a stream, one that the upstream rejects, and one over every budget; the others are answered."""
    scripts = {"small": [{"status": 400, "error": "no"}, {}]}
    bodies = [
        chat("auto", "rejected", max_tokens=8), chat("auto", "stream", stream=True),
        chat("auto", "fine", max_tokens=8), chat("auto", "too dear", max_tokens=100_000),
    ]  # fmt: skip
    async with live(tmp_path, scripts=scripts, models=["small", "large"], routes=[AUTO]) as gateway:
        made = plan(tmp_path / "plan", bodies, estimates([SMALL], 4, QUALITY, {"small": 1e-5}), budget_usd=0.01)
        done = await carried(gateway.services, made, tmp_path, concurrency=1)
    assert [line["custom_id"] for line in done.output] == ["row-3"]
    errors = {line["custom_id"]: line["response"] for line in done.errors}
    assert {id: one["status_code"] for id, one in errors.items()} == {"row-1": 400, "row-2": 400, "row-4": 429}
    assert errors["row-4"]["body"]["error"]["code"] == "budget_exhausted"


@pytest.mark.parametrize("is_known", [True, False])
async def test_a_hold_covers_the_files_of_a_prompt(
    tmp_path: Path, is_known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt whose hold doesn't fit the budget is never asked, even if its size is known only once it is read."""
    if not is_known:
        monkeypatch.setattr("gateway.batch.execute.named_in", lambda path: [])
    async with live(tmp_path, models=["small", "large"], routes=[AUTO]) as gateway:
        files, bodies = gateway.services.batches.files, []
        for size in (100, 100_000):
            file = await asyncio.to_thread(files.add, "default", "user_data", "a.txt", [b"x" * size], 0.0)
            content = [{"type": "file", "file": {"file_id": file.id}}, {"type": "text", "text": "what is it?"}]
            bodies.append(chat("auto", "", max_tokens=8, messages=[{"role": "user", "content": content}]))
        made = plan(tmp_path / "plan", bodies, estimates([SMALL], 2, QUALITY, {"small": 1e-5}), budget_usd=0.01)
        worst: list[int] = []

        def look(runner: Runner) -> None:
            worst.append(runner.asker.ready(made.prompts[1], runner.arm_call(1, 0)).worst_nanousd)

        done = await carried(gateway.services, made, tmp_path, on_start=look)
        await gateway.rest()
    assert (worst[0] >= 100_000 * 1_000) == is_known, "nano-dollars, a token for each byte"
    assert [line["custom_id"] for line in done.output] == ["row-1"] and gateway.upstream.seen.requests == 1
    assert [line["response"]["body"]["error"]["code"] for line in done.errors] == ["budget_exhausted"]


def test_ids_are_found_across_the_pieces_of_an_input(tmp_path: Path) -> None:
    ids = [f"file_{number:028x}" for number in range(3)] + [f"file-batch_{0:028x}-output"]
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"x" * (CHUNK_BYTES - 20) + ids[0].encode() + b"y" * (CHUNK_BYTES - 34) + " ".join(ids).encode())
    assert named_in(path) == sorted(ids)


async def test_results_may_be_parquet(tmp_path: Path) -> None:
    """By the file's name, the same lines are written as rows, with model and cost."""
    import pyarrow.parquet as pq

    bodies = [chat("auto", f"say {number}", max_tokens=8) for number in range(5)]
    async with live(tmp_path, models=["small", "large"], routes=[AUTO]) as gateway:
        made = plan(tmp_path / "plan", bodies, estimates([SMALL], 5, QUALITY, {"small": 1e-5}),
                    duplicates=[Duplicate(6, "row-6", 0)])  # fmt: skip
        out, errors = str(tmp_path / "out.parquet"), str(tmp_path / "errors.parquet")
        done = await carried(gateway.services, made, tmp_path, out=out, errors_out=errors)
    rows = pq.read_table(out).to_pylist()
    assert [row["custom_id"] for row in rows] == ["row-1", "row-6", "row-2", "row-3", "row-4", "row-5"]
    assert sum(row["cost_usd"] for row in rows) == pytest.approx(done.spent_usd)
    assert {row["model"] for row in rows} == {"small"}
    assert pq.read_table(errors).num_rows == 0
