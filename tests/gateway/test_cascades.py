"""The cascades by name, on the request path, over real sockets."""

from __future__ import annotations

import json
import sys
from math import inf
from pathlib import Path

import httpx
import pytest

from cascade.artifact import save_cascade
from cascade.plan import NAMES, plan_for
from cascade.routing import RoutedCascade
from cascade.rows import TrainingSettings
from cascade.train import PLANS, train_cascade
from gateway.app import open_cascades
from gateway.config.check import CASCADES
from gateway.config.load import parse
from gateway.errors import ConfigError
from gateway.routes import share_of
from routers.types import Choice, Estimate, Knobs
from tests.cascade.worlds import MODELS as LEARNT_MODELS
from tests.cascade.worlds import logged
from tests.live import Live, live

LEARNT = list(LEARNT_MODELS)

MODELS = [
    {"name": "small", "logprobs": True, "input_usd_per_mtok": 0.1, "output_usd_per_mtok": 0.1},
    {"name": "large", "logprobs": True},
]


def route(cascade: str) -> dict[str, object]:
    return {"name": "auto", "models": ["small", "large"], "router": "cheapest", "cascade": cascade,
            "accept_at": 0.8, "max_attempts": 25, "min_quality": 0.9}  # fmt: skip


async def ask(gateway: Live, **more: object) -> httpx.Response:
    body = {"model": "auto", "messages": [{"role": "user", "content": "what is the answer?"}], **more}
    async with httpx.AsyncClient() as client:
        return await client.post(gateway.url + "/v1/chat/completions", json=body)


def test_the_file_may_name_every_strategy_there_is() -> None:
    """Every strategy that the configuration accepts can be run, and the other way round."""
    assert set(CASCADES) == set(NAMES)


def test_a_strategy_that_could_not_finish_is_refused_at_start() -> None:
    """A stepwise cascade with too few attempts could never finish an answer."""
    models = [{**model, "provider": "up"} for model in MODELS]
    short = {**route("stepwise"), "max_attempts": 8}
    table = {"providers": [{"name": "up", "kind": "scripted"}], "models": models, "routes": [short]}
    _, problems = parse(table, {})
    assert [problem.partition(":")[0] for problem in problems] == ["routes[0].max_attempts"]


async def test_self_consistency_answers_with_the_majority(tmp_path: Path) -> None:
    """Self-consistency asks the small model several times at once and answers with the majority."""
    scripts = {"small": [{"text": "seven"}, {"text": "eight"}, {"text": "seven"}], "large": [{"text": "never asked"}]}
    async with live(tmp_path, scripts=scripts, models=MODELS, routes=[route("self-consistency")]) as gateway:
        answer = await ask(gateway)
        record = await gateway.decision(answer.headers["x-headgate-decision-id"])
        await gateway.rest()
    assert answer.json()["choices"][0]["message"]["content"] == "seven"
    assert len(record.attempts) >= 3 and {attempt.model for attempt in record.attempts} == {"small"}
    assert record.cost_nanousd == sum(attempt.cost_nanousd for attempt in record.attempts) <= record.held_nanousd


@pytest.mark.parametrize("cascade", ["best-of", "refine"])
async def test_the_record_has_the_id_of_the_answer_that_was_given(tmp_path: Path, cascade: str) -> None:
    """The recorded response id is that of the answer the client got, not of the last one to arrive; feedback refers to
    it.
    """
    said = [{"text": "seven", "logprob": -0.5}, {"text": "eight", "logprob": -3.0}]
    scripts = {"small": said, "large": [{"text": "ten", "logprob": -0.9}]}
    async with live(tmp_path, scripts=scripts, models=MODELS, routes=[route(cascade)]) as gateway:
        answer = await ask(gateway)
        record = await gateway.decision(answer.headers["x-headgate-decision-id"])
    assert record.response_id == answer.json()["id"] and len(record.attempts) > 1


@pytest.mark.parametrize("cascade", [name for name in NAMES if name != "none"])
@pytest.mark.parametrize("stream", [False, True])
async def test_every_strategy_answers_once_and_leaves_nothing(tmp_path: Path, cascade: str, stream: bool) -> None:
    """With every strategy the client gets one whole answer, and nothing is left held."""
    points = {"text": "1. first point\n2. second point", "logprob": -1.0}
    scripts = {"small": [points], "large": [{"text": "yes, certain"}]}
    async with live(tmp_path, scripts=scripts, models=MODELS, routes=[route(cascade)]) as gateway:
        answer = await ask(gateway, stream=stream)
        record = await gateway.decision(answer.headers["x-headgate-decision-id"])
        await gateway.rest()
    assert answer.status_code == 200, answer.text
    assert answer.text.rstrip().endswith("[DONE]") if stream else answer.json()["choices"][0]["message"]["content"]
    assert record.verdict and 1 <= len(record.attempts) <= 25
    assert record.cost_nanousd == sum(attempt.cost_nanousd for attempt in record.attempts) <= record.held_nanousd


async def test_the_record_holds_the_confidence_that_was_compared(tmp_path: Path) -> None:
    """An attempt whose evidence was read has its confidence in the record, and a stream without usage is marked as
    estimated.
    """
    scripts = {"small": [{"text": "unsure", "logprob": -2.0}], "large": [{"text": "certain", "usage": False}]}
    async with live(tmp_path, scripts=scripts, models=MODELS, routes=[route("confidence")]) as gateway:
        answer = await ask(gateway)
        record = await gateway.decision(answer.headers["x-headgate-decision-id"])
        await gateway.rest()
    first, second = record.attempts
    assert first.evidence is not None and first.evidence.confidence == pytest.approx(0.1353, abs=1e-3)
    assert not first.estimated and second.estimated


async def test_speculation_cuts_the_slow_model_off_and_pays_for_it(tmp_path: Path) -> None:
    """A confident first answer is returned at once; the large model's call is cancelled, recorded and charged."""
    scripts = {"small": [{"text": "seven", "logprob": -0.01}], "large": [{"delay_s": 30.0, "text": "never read"}]}
    async with live(
        tmp_path, scripts=scripts, models=MODELS, routes=[{**route("confidence"), "speculate": True}]
    ) as gateway:
        answer = await ask(gateway)
        record = await gateway.decision(answer.headers["x-headgate-decision-id"])
        await gateway.rest()
    assert answer.json()["choices"][0]["message"]["content"] == "seven"
    assert {attempt.model: attempt.failure for attempt in record.attempts} == {"small": "", "large": "cancelled"}
    assert record.cost_nanousd == sum(attempt.cost_nanousd for attempt in record.attempts) <= record.held_nanousd
    assert all(attempt.cost_nanousd > 0 for attempt in record.attempts) and record.overhead_ms is not None


async def test_speculation_answers_with_the_large_model_where_the_small_one_is_unsure(tmp_path: Path) -> None:
    """Both models are asked at the same time; when the small one is unsure the large one's answer is returned, streamed
    if the client asks for it.
    """
    scripts = {"small": [{"text": "unsure", "logprob": -3.0}], "large": [{"text": "certain"}]}
    async with live(
        tmp_path, scripts=scripts, models=MODELS, routes=[{**route("confidence"), "speculate": True}]
    ) as gateway:
        answer = await ask(gateway, stream=True)
        record = await gateway.decision(answer.headers["x-headgate-decision-id"])
        await gateway.rest()
    assert "certain" in answer.text and answer.text.rstrip().endswith("[DONE]")
    assert [attempt.model for attempt in record.attempts] == ["small", "large"] and record.verdict == "last"
    assert record.attempts[1].started_s < record.attempts[0].started_s + (record.attempts[0].latency_s or 0.0)


async def test_a_failed_check_escalates(tmp_path: Path) -> None:
    """An answer that fails the operator's check is escalated, and one that passes is kept, without log-probabilities.
    """
    script = tmp_path / "check.py"
    script.write_text("import sys\nsys.exit(0 if sys.stdin.read() == 'right' else 1)\n")
    checked = {**route("confidence"), "check": [sys.executable, "-I", str(script)], "check_timeout_s": 60.0}
    plain = [{**model, "logprobs": False} for model in MODELS]
    scripts = {"small": [{"text": "wrong"}, {"text": "right"}], "large": [{"text": "certain"}]}
    async with live(tmp_path, scripts=scripts, models=plain, routes=[checked]) as gateway:
        answers = [await ask(gateway), await ask(gateway)]
        records = [await gateway.decision(answer.headers["x-headgate-decision-id"]) for answer in answers]
        await gateway.rest()
    assert [record.answered_model for record in records] == ["large", "small"]
    seen = [record.attempts[0].evidence for record in records]
    assert [one.checks_passed if one else None for one in seen] == [False, True]


async def test_json_that_breaks_the_schema_is_escalated(tmp_path: Path) -> None:
    """JSON that doesn't fit the request's schema is escalated, however confident the small model is."""
    scripts = {"small": [{"text": '{"age": "old"}', "logprob": -0.001}], "large": [{"text": '{"age": 7}'}]}
    schema = {"type": "object", "required": ["age"], "properties": {"age": {"type": "integer"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
    able = [{**model, "json": True} for model in MODELS]
    async with live(tmp_path, scripts=scripts, models=able, routes=[route("confidence")]) as gateway:
        answer = await ask(gateway, response_format=wanted)
        record = await gateway.decision(answer.headers["x-headgate-decision-id"])
        await gateway.rest()
    assert answer.json()["choices"][0]["message"]["content"] == '{"age": 7}'
    seen = [attempt.evidence for attempt in record.attempts]
    assert len(seen) == 2 and seen[0] is not None and seen[0].schema_valid is False


@pytest.mark.parametrize(
    ("knobs", "share"),
    [(Knobs(), 1.0), (Knobs(min_quality=0.9, cost_weight=0.0), 0.9), (Knobs(cost_weight=0.0), inf),
     (Knobs(cost_weight=0.5), 1.0)],
)  # fmt: skip
def test_the_quality_target_of_a_trained_cascade(knobs: Knobs, share: float) -> None:
    """The target is the quality floor if there is one, the best possible where only quality counts, else the best
    single model's quality.
    """
    assert share_of(knobs) == share


@pytest.mark.parametrize(("verdict", "answered"), [("yes, correct", "small"), ("no, incorrect", "large")])
async def test_a_judge_says_whether_a_draft_is_kept(tmp_path: Path, verdict: str, answered: str) -> None:
    """The judge may be a model outside the route; it answers no request itself, and its calls are held for and charged.
    """
    scripts = {name: [{"text": f"from {name}"}] for name in ("small", "large")} | {"judge": [{"text": verdict}]}
    models = [*MODELS, {"name": "judge", "output_usd_per_mtok": 50.0}]
    judged = {**route("verify"), "judge": "judge"}
    async with live(tmp_path, scripts=scripts, models=models, routes=[judged]) as gateway:
        answer = await ask(gateway)
        record = await gateway.decision(answer.headers["x-headgate-decision-id"])
        only = await ask(gateway, headgate={"models": ["small", "large"]})
        await gateway.rest()
    assert answer.json()["choices"][0]["message"]["content"] == f"from {answered}"
    asked = [attempt.model for attempt in record.attempts]
    assert asked[0] == "small" and asked[1] == "judge" and "judge" not in {one.model for one in record.candidates}
    assert record.cost_nanousd == sum(attempt.cost_nanousd for attempt in record.attempts) <= record.held_nanousd
    assert only.json()["choices"][0]["message"]["content"] == f"from {answered}"


SURFACES = {
    "chat/completions": {
        "messages": [{"role": "system", "content": "Be terse."}, {"role": "user", "content": "what is the answer?"}],
        "max_completion_tokens": 50, "stop": ["."], "response_format": {"type": "json_object"},
    },
    "messages": {"system": "Be terse.", "messages": [{"role": "user", "content": "what is the answer?"}],
                 "max_tokens": 50, "stop_sequences": ["."]},
    "responses": {"instructions": "Be terse.", "input": "what is the answer?", "max_output_tokens": 50},
}  # fmt: skip


@pytest.mark.parametrize("provider", ["up", "claude"])
@pytest.mark.parametrize("surface", SURFACES)
async def test_verification_requests_fit_the_providers_api(
    tmp_path: Path, surface: str, provider: str
) -> None:
    """A draft is verified on every surface with turns. The verifying request has one output limit, no response format,
    and for Anthropic neither a system turn nor a seed.
    """
    scripts = {"small": [{"text": '{"n": 4}'}, {"text": "Incorrect"}], "large": [{"text": '{"n": 5}'}]}
    models = [{**MODELS[0], "provider": provider}, MODELS[1]]
    async with live(tmp_path, scripts=scripts, models=models, routes=[route("verify")]) as gateway:
        async with httpx.AsyncClient() as client:
            answer = await client.post(f"{gateway.url}/v1/{surface}", json={"model": "auto", **SURFACES[surface]})
        sent = [json.loads(str(one["body"])) for one in gateway.upstream.seen.recent if one["model"] == "small"]
        await gateway.rest()
    assert answer.status_code == 200 and answer.headers["x-headgate-model"] == "large"
    limits = {"max_tokens", "max_completion_tokens"}
    for verdict in sent[1:]:
        assert len(limits & verdict.keys()) == 1 and {verdict[name] for name in limits & verdict.keys()} == {4}
        assert not {"response_format", "stop", "stop_sequences", "tool_choice"} & verdict.keys()
        roles = [turn["role"] for turn in verdict["messages"]]
        assert roles == ["system"] * (provider == "up") + ["user", "assistant", "user"]
        assert ("seed" in verdict) == (provider == "up") and ("system" in verdict) == (provider == "claude")
    assert len(sent) == 4


@pytest.mark.parametrize("surface", ["chat/completions", "messages"])
async def test_samples_of_anthropics_api_have_no_seed(tmp_path: Path, surface: str) -> None:
    """Anthropic's API refuses unknown fields such as `seed`, so samples are requested without it."""
    models = [{**model, "provider": "claude"} for model in MODELS]
    body = {"model": "auto", **SURFACES[surface]}
    body.pop("response_format", None)
    async with live(tmp_path, models=models, routes=[route("self-consistency")]) as gateway:
        async with httpx.AsyncClient() as client:
            answer = await client.post(f"{gateway.url}/v1/{surface}", json=body)
        sent = [json.loads(str(one["body"])) for one in gateway.upstream.seen.recent]
        await gateway.rest()
    assert answer.status_code == 200 and len(sent) > 1
    assert all(one.keys() == {"model", "messages", "system", "max_tokens", "stop_sequences"} for one in sent)


@pytest.mark.parametrize(
    ("cascade", "small"),
    [("verify", [{"text": "four"}, {"status": 400, "error": "no temperature here"}]),
     ("self-consistency", [{"status": 400, "error": "no temperature here"}])],
)  # fmt: skip
async def test_a_refused_request_of_the_cascade_is_not_the_clients_fault(
    tmp_path: Path, cascade: str, small: list[dict[str, object]]
) -> None:
    """When the model refuses a request that the cascade wrote, the climb goes on and the draft isn't accepted."""
    scripts = {"small": small, "large": [{"text": "from large"}]}
    async with live(tmp_path, scripts=scripts, models=MODELS, routes=[route(cascade)]) as gateway:
        answer = await ask(gateway)
        await gateway.rest()
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == "from large"


@pytest.mark.parametrize("cascade", ["skeleton", "stepwise"])
async def test_tools_and_json_are_answered_by_one_model(tmp_path: Path, cascade: str) -> None:
    """With tools or JSON requested, one model writes the whole answer."""
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    scripts = {"small": [{"tool_calls": [{"name": "look", "arguments": {"at": 1}}]}, {"text": "{}"}]}
    turns = [{"role": "user", "content": "list three reasons"}]
    async with live(tmp_path, scripts=scripts, models=MODELS, routes=[route(cascade)]) as gateway:
        called = await ask(gateway, messages=turns, tools=[tool])
        written = await ask(gateway, messages=turns, response_format={"type": "json_object"})
        await gateway.rest()
        assert gateway.upstream.seen.by_model == {"small": 2}
    assert called.json()["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "look"
    assert written.json()["choices"][0]["message"]["content"] == "{}"


@pytest.mark.parametrize(
    ("cascade", "tells", "more"),
    [("self-consistency", True, {"n": 2}), ("confidence", True, {"n": 2}), ("confidence", False, {})],
)
async def test_one_model_answers_what_a_strategy_cannot_compare(
    tmp_path: Path, cascade: str, tells: bool, more: dict[str, int]
) -> None:
    """One model answers a request for several choices, and a request to models without log-probabilities."""
    models = [{**MODELS[0], "logprobs": tells}, MODELS[1]]
    scripts = {"small": [{"text": "unsure", "logprob": -2.0}]}
    async with live(tmp_path, scripts=scripts, models=models, routes=[route(cascade)]) as gateway:
        answer = await ask(gateway, **more)
        await gateway.rest()
        assert gateway.upstream.seen.by_model == {"small": 1}
    assert answer.json()["choices"][0]["message"]["content"] == "unsure"


async def test_different_calls_of_tools_are_different_answers(tmp_path: Path) -> None:
    """Two models whose tool calls differ don't agree, so the best one decides."""
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}

    def calls(city: str) -> dict[str, object]:
        return {"tool_calls": [{"name": "look", "arguments": {"city": city, "days": 3, "unit": "C"}}]}

    scripts = {"small": [calls("Rome")], "middle": [calls("Paris")], "large": [calls("Oslo")]}
    middle = {"name": "middle", "logprobs": True, "input_usd_per_mtok": 0.2, "output_usd_per_mtok": 0.2}
    three = {**route("agreement"), "models": ["small", "middle", "large"]}
    async with live(tmp_path, scripts=scripts, models=[*MODELS, middle], routes=[three]) as gateway:
        answer = await ask(gateway, tools=[tool])
        await gateway.rest()
    assert answer.headers["x-headgate-model"] == "large"


def test_the_best_model_judges_no_drafts() -> None:
    """The best model's verdict would cost as much as its answer, so the draft's own model judges. Unknown judges are
    refused.
    """
    table = {"providers": [{"name": "up", "kind": "scripted"}], "models": [{**m, "provider": "up"} for m in MODELS]}
    _, problems = parse({**table, "routes": [{**route("verify"), "judge": "nobody"}]}, {})
    assert [problem.partition(":")[0] for problem in problems] == ["routes[0].judge"]
    _, problems = parse({**table, "routes": [{**route("agreement"), "judge": "large"}]}, {})
    assert [problem.partition(":")[0] for problem in problems] == ["routes[0].judge"]
    estimates = (Estimate("small", 0.6, 0.1, 0.001), Estimate("large", 0.9, 0.1, 0.01))
    choice = Choice("small", 1.0, {"small": 1.0, "large": 0.0}, estimates, {}, "", "r@1", ranked=("small", "large"))
    prices = {"small": 0.001, "large": 0.01, "other": 0.002}
    chat = [{"role": "user", "content": "what?"}]
    by = {judge: plan_for(choice, "verify", prices, messages=chat, judge=judge) for judge in ("", "large", "other")}
    assert by["large"].steps == by[""].steps and by["other"].steps[1].model == "other"


@pytest.mark.parametrize("plan", PLANS)
async def test_a_trained_cascade_answers_a_route_that_names_its_file(tmp_path: Path, plan: str) -> None:
    """With every kind of trained cascade, a confident answer is returned and nothing is left held."""
    made = train_cascade(logged(150), TrainingSettings(router="linear", estimate_folds=2, folds=2), plan)
    save_cascade(tmp_path / "c.safetensors", made, version="1")
    models = [{"name": name, "logprobs": True, "output_usd_per_mtok": 10.0**at} for at, name in enumerate(LEARNT)]
    trained = {"name": "auto", "models": LEARNT, "cascade": str(tmp_path / "c.safetensors"), "min_quality": 0.5}
    scripts = {name: [{"text": "A", "logprob": -0.01}] for name in LEARNT}
    async with live(tmp_path, scripts=scripts, models=models, routes=[trained]) as gateway:
        answer = await ask(gateway)
        record = await gateway.decision(answer.headers["x-headgate-decision-id"])
        await gateway.rest()
    assert answer.json()["choices"][0]["message"]["content"] == "A" and record.plan
    if plan == "verify":
        assert len(record.attempts) > 1
    assert record.cost_nanousd == sum(attempt.cost_nanousd for attempt in record.attempts) <= record.held_nanousd


async def test_a_trained_cascade_gives_no_answer_that_may_be_wrong(tmp_path: Path) -> None:
    """With a bound on wrong answers an unsure request ends with status 422 and is charged; a sure one is answered."""
    made = train_cascade(logged(400), TrainingSettings(router="linear", estimate_folds=2, folds=2))
    save_cascade(tmp_path / "c.safetensors", made, version="1")
    assert isinstance(made, RoutedCascade)
    assert 0.0 < made.least_chance(1.0, 0.15) < inf == made.least_chance(1.0, 0.001)
    models = [{"name": name, "logprobs": True, "output_usd_per_mtok": 10.0**at} for at, name in enumerate(LEARNT)]
    trained = {"name": "auto", "models": LEARNT, "cascade": str(tmp_path / "c.safetensors"), "most_wrong": 0.15}
    replies = [{"text": "A", "logprob": -0.001}, {"text": "B", "logprob": -6.0}]
    letters = ("A", "C", "D")
    scripts = {name: [replies[0], {**replies[1], "text": letter}] for name, letter in zip(LEARNT, letters, strict=True)}
    async with live(tmp_path, scripts=scripts, models=models, routes=[trained]) as gateway:
        answers = [await ask(gateway) for _ in range(2)]
        records = [await gateway.decision(answer.headers["x-headgate-decision-id"]) for answer in answers]
        await gateway.rest()
    assert [answer.status_code for answer in answers] == [200, 422]
    assert answers[1].json()["error"]["code"] == "abstained" and records[1].verdict == "abstained"
    for record in records:
        assert record.cost_nanousd == sum(attempt.cost_nanousd for attempt in record.attempts) <= record.held_nanousd


def test_a_bound_that_no_cascade_can_keep_is_refused_at_start(tmp_path: Path) -> None:
    """A bound on wrong answers is refused for plain strategies, which can't abstain, and for trained ones that can't
    keep it.
    """
    table = {"providers": [{"name": "up", "kind": "scripted"}], "models": [{**m, "provider": "up"} for m in MODELS]}
    _, problems = parse({**table, "routes": [{**route("confidence"), "most_wrong": 0.1}]}, {})
    assert [problem.partition(":")[0] for problem in problems] == ["routes[0].most_wrong"]
    made = train_cascade(logged(100), TrainingSettings(router="linear"), "verify")
    save_cascade(tmp_path / "c.safetensors", made, version="1")
    config, _ = parse({**table, "routes": [{**route(str(tmp_path / "c.safetensors")), "most_wrong": 0.1}]}, {})
    assert config is not None
    with pytest.raises(ConfigError, match="most_wrong"):
        open_cascades(config)


@pytest.mark.parametrize("cascade", ["self-consistency", "best-of", "refine"])
async def test_every_call_to_one_model_is_held_for(tmp_path: Path, cascade: str) -> None:
    """A strategy that calls its only model several times holds money for all calls, and releases the rest."""
    words = [{"text": "word " * 60 + name, "logprob": -1.0} for name in ("seven", "eight", "nine")]
    alone = {**route(cascade), "models": ["small"], "retries": 0, "max_attempts": 5}
    async with live(tmp_path, scripts={"small": words}, models=MODELS[:1], routes=[alone]) as gateway:
        answer = await ask(gateway, max_tokens=100)
        record = await gateway.decision(answer.headers["x-headgate-decision-id"])
        await gateway.rest()
    assert len(record.attempts) > 1
    assert record.cost_nanousd == sum(attempt.cost_nanousd for attempt in record.attempts) <= record.held_nanousd
