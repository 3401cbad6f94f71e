"""Running a planned job against a real gateway and a real upstream."""

from __future__ import annotations

from pathlib import Path

from gateway.batch.types import Arm, Duplicate
from tests.gateway.batch.made import carried, chat, estimates, plan
from tests.live import live

SMALL, LARGE = Arm("small"), Arm("large")
QUALITY = {"small": 0.6, "large": 0.9}


async def test_every_prompt_is_answered_once_and_the_money_is_the_journals(tmp_path: Path) -> None:
    """Answers by custom_id, a duplicate with its prompt's answer, a spend that the journal's decisions add up to."""
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
