"""The request path end to end: a real client socket in front, a real upstream socket behind it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from gateway.breaker import CONSECUTIVE
from gateway.journal.record import ANY_TENANT, FeedbackRecord
from gateway.journal.spool import spool_dir
from gateway.money.ledger import MemoryLedger
from tests.gateway.journal.test_spool import records_in
from tests.live import Live, live

CHAT: dict[str, Any] = {"model": "echo", "messages": [{"role": "user", "content": "hello there"}]}


async def post(url: str, body: dict[str, object], path: str = "/v1/chat/completions", **headers: str) -> httpx.Response:
    async with httpx.AsyncClient() as client:
        return await client.post(url + path, json=body, headers={k.replace("_", "-"): v for k, v in headers.items()})


async def test_pinned_model_answers_and_is_recorded(tmp_path: Path) -> None:
    """A pinned model answers, and its decision with its cost is in the journal before the client has the answer."""
    async with live(tmp_path) as gateway:
        answer = await post(gateway.url, CHAT)
        record = await gateway.decision(answer.headers["x-headgate-decision-id"])
        await gateway.rest()
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] == "hello there"
    assert record.answered_model == "echo" and record.verdict == "only" and record.status == 200
    assert record.cost_nanousd == pytest.approx(float(answer.headers["x-headgate-cost-usd"]) * 1e9)
    assert record.held_nanousd >= record.cost_nanousd > 0
    assert record.request_id == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("path", "meant"),
    [("/chat/completions", "/v1/chat/completions"), ("//v1/chat/completions", "/v1/chat/completions"),
     ("/v1/v1/messages", "/v1/messages"), ("/api/v1/responses/", "/v1/responses"), ("/models", "/v1/models"),
     ("/nothing", ""), ("/v1/nothing/", ""), ("/responses/" + "x" * 300, "")],
)  # fmt: skip
async def test_a_base_url_that_is_nearly_right_gets_a_suggestion(tmp_path: Path, path: str, meant: str) -> None:
    """A base URL with a slash too many, with /v1 missing or with /v1 twice is answered with the path that was meant."""
    async with live(tmp_path) as gateway:
        answer = await post(gateway.url, CHAT, path)
    message = answer.json()["error"]["message"]
    assert answer.status_code == 404 and message.startswith(f"Unknown request URL: POST {path[:200]}")
    assert message.partition("did you mean ")[2].partition("?")[0] == meant


async def test_unknown_fields_reach_the_upstream_byte_for_byte(tmp_path: Path) -> None:
    """Unknown fields are passed through as they came, odd spacing and number formats included."""
    body = b'{"model":"echo" , "messages":[ {"role":"user","content":"hi"}],"x_new":{"a":1.0,"b":1e300},"seed":7}'
    async with live(tmp_path) as gateway, httpx.AsyncClient() as client:
        answer = await client.post(gateway.url + "/v1/chat/completions", content=body)
        await gateway.rest()
    assert answer.status_code == 200
    assert gateway.upstream.seen.recent[-1]["body"] == body.decode()


async def test_a_route_falls_back_and_says_so(tmp_path: Path) -> None:
    """When a model fails for good the route's other model answers; both attempts are recorded."""
    routes = [{"name": "auto", "models": ["bad", "good"], "router": "cheapest"}]
    models = [{"name": "bad", "input_usd_per_mtok": 0.1, "output_usd_per_mtok": 0.1}, {"name": "good"}]
    scripts = {"bad": [{"status": 500}], "good": [{"text": "fine"}]}
    async with live(tmp_path, scripts=scripts, models=models, routes=routes) as gateway:
        answer = await post(gateway.url, {**CHAT, "model": "auto"})
        record = await gateway.decision(answer.headers["x-headgate-decision-id"])
        await gateway.rest()
    assert answer.json()["choices"][0]["message"]["content"] == "fine"
    assert answer.headers["x-headgate-model"] == "good"
    assert [attempt.failure for attempt in record.attempts] == ["server_error", "server_error", ""]
    assert record.verdict == "fallback"


async def test_a_route_whose_models_are_down_begins_with_its_fallback(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """While the breaker of a route's only model is open, requests start with the fallback, and it is logged once. Each
    such request counts as a fallback, none as one that the router could not decide.
    """
    routes = [{"name": "auto", "models": ["bad"], "fallback": ["good"]}]
    scripts = {"bad": [{"status": 500}], "good": [{"text": "fine"}]}
    async with live(tmp_path, scripts=scripts, models=["bad", "good"], routes=routes) as gateway:
        answers = [await post(gateway.url, {**CHAT, "model": "auto"}) for _ in range(8)]
        record = await gateway.decision(answers[-1].headers["x-headgate-decision-id"])
        asked = gateway.upstream.seen.by_model
        await gateway.rest()
        metrics = (await httpx.AsyncClient().get(gateway.url + "/metrics")).text
    assert 'headgate_fallbacks_total{route="auto"} 8.0' in metrics and "headgate_router_undecided_total{" not in metrics
    assert {answer.json()["choices"][0]["message"]["content"] for answer in answers} == {"fine"}
    assert asked == {"bad": 6, "good": 8}
    assert [attempt.model for attempt in record.attempts] == ["good"]
    assert [line for line in caplog.messages if "left alone" in line] == [
        f"deployment up/bad is left alone after its failures: server_error at {origin(gateway)}: status 500"
    ]


@pytest.mark.parametrize(
    ("provider", "step", "told"),
    [
        ("up", {"status": 500, "error": "hush of sk-upstream-secret broke me"}, "server_error at {}: status 500"),
        ("up", {"status": 401, "error": "hush sk-upstream-secret"}, "unauthorized at {}: status 401"),
        ("up", {"fault": "rst"}, "reset at {}: the upstream closed the connection inside its answer"),
        ("up", {"fault": "not_json", "text": "hush"}, "bad_response at {}: status 200"),
        ("gone", {}, "connect at http://gone.invalid: no connection to http://gone.invalid: "),
    ],
)
async def test_the_log_tells_why_a_deployment_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, provider: str, step: dict[str, object], told: str
) -> None:
    """The log names the last failure and the upstream's origin, in the gateway's words, without the request or the key
    that the upstream repeats.
    """
    gone = {"name": "gone", "kind": "openai", "base_url": "http://gone.invalid/v1"}
    models = [{"name": "bad", "provider": provider}]
    async with live(tmp_path, scripts={"bad": [step]}, models=models, providers=[gone]) as gateway:
        for _ in range(CONSECUTIVE):
            await post(gateway.url, {"model": "bad", "messages": [{"role": "user", "content": "hush"}]})
        await gateway.rest()
    (line,) = [line for line in caplog.messages if "left alone" in line]
    told = told.format(origin(gateway))
    assert line.startswith(f"deployment {provider}/bad is left alone after its failures: {told}")
    assert "hush" not in caplog.text and "sk-upstream" not in caplog.text


def origin(gateway: Live) -> str:
    """The upstream's address as the connection pool prints it."""
    return gateway.upstream.url.removesuffix("/v1")


async def test_spent_attempts_tell_the_client_not_to_retry(tmp_path: Path) -> None:
    """When the gateway's own attempts are used up the client is told not to retry, which would multiply them."""
    async with live(tmp_path, scripts={"echo": [{"status": 503}]}) as gateway:
        answer = await post(gateway.url, CHAT)
        await gateway.rest()
    assert answer.status_code == 503
    assert answer.headers["x-should-retry"] == "false"
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


async def test_a_rejected_request_is_never_retried(tmp_path: Path) -> None:
    """A 400 from the upstream is the client's fault: there is one attempt, and the upstream's message is passed on."""
    scripts = {"echo": [{"status": 400, "error": "bad tool"}]}
    async with live(tmp_path, scripts=scripts) as gateway:
        answer = await post(gateway.url, CHAT)
        assert gateway.upstream.seen.requests == 1
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "bad tool"


async def test_an_unsure_cheap_answer_is_escalated(tmp_path: Path) -> None:
    """A cheap answer with low log-probabilities is escalated to the better model, and the client sees no
    log-probabilities.
    """
    models = [
        {"name": "small", "logprobs": True, "input_usd_per_mtok": 0.1, "output_usd_per_mtok": 0.1},
        {"name": "large", "logprobs": True},
    ]
    routes = [{"name": "auto", "models": ["small", "large"], "router": "cheapest", "cascade": "confidence",
               "accept_at": 0.8}]
    for logprob, expected in ((-0.01, "unsure"), (-2.0, "certain")):
        scripts = {"small": [{"text": "unsure", "logprob": logprob}], "large": [{"text": "certain"}]}
        async with live(tmp_path, scripts=scripts, models=models, routes=routes) as gateway:
            for stream in (False, True):
                answer = await post(gateway.url, {**CHAT, "model": "auto", "stream": stream})
                assert expected in answer.text, (logprob, stream, answer.text)
                assert '"logprob":' not in answer.text
            await gateway.rest()


async def test_identical_requests_share_one_upstream_call(tmp_path: Path) -> None:
    """Two identical requests at the same time make one upstream call, and a later third makes none."""
    import asyncio

    routes = [{"name": "auto", "models": ["echo"], "router": "cheapest", "cache": "exact"}]
    async with live(tmp_path, scripts={"echo": [{"delay_s": 2}]}, routes=routes) as gateway:
        body = {**CHAT, "model": "auto"}
        answers = await asyncio.gather(*(post(gateway.url, body) for _ in range(2)))
        answers.append(await post(gateway.url, body))
        streamed = await post(gateway.url, {**body, "stream": True})
        assert gateway.upstream.seen.requests == 1
        await gateway.rest()
    assert sorted(answer.headers["x-headgate-cache"] for answer in answers) == ["hit", "miss", "shared"]
    assert len({answer.content for answer in answers}) == 1
    assert streamed.text.endswith("data: [DONE]\n\n") and "hello" in streamed.text
    assert answers[-1].headers["x-headgate-cost-usd"] == "0.000000000"


async def test_tenants_never_share_a_cached_answer(tmp_path: Path) -> None:
    """The same question from another tenant is sent upstream."""
    routes = [{"name": "auto", "models": ["echo"], "router": "cheapest", "cache": "exact"}]
    keys = [{"name": name, "key": f"hg-{name}", "tenant": name} for name in ("a", "b")]
    async with live(tmp_path, routes=routes, auth={"keys": keys}) as gateway:
        body = {**CHAT, "model": "auto"}
        states = [
            (await post(gateway.url, body, authorization=f"Bearer hg-{name}")).headers["x-headgate-cache"]
            for name in ("a", "b", "a", "b")
        ]
    assert states == ["miss", "miss", "hit", "hit"]


async def test_an_answer_is_shared_among_equal_knobs_only(tmp_path: Path) -> None:
    """A cached answer is shared only between requests with the same cost weight and quality floor."""
    routes = [{"name": "auto", "models": ["cheap", "good"], "cache": "semantic"}]
    models = [{"name": "cheap", "input_usd_per_mtok": 0.01, "output_usd_per_mtok": 0.01},
              {"name": "good", "input_usd_per_mtok": 5.0, "output_usd_per_mtok": 9.0}]  # fmt: skip
    said = []
    async with live(tmp_path, models=models, routes=routes) as gateway:
        for knobs in ({"cost_weight": 1}, {"cost_weight": 1}, {"min_quality": 0.2}, {}, {"max_cost_usd": 5}, None):
            answer = await post(gateway.url, {**CHAT, "model": "auto", "headgate": knobs})
            said.append(answer.headers["x-headgate-cache"])
        await gateway.rest()
    assert said == ["miss", "hit", "miss", "miss", "hit", "hit"]


@pytest.mark.parametrize(
    ("path", "asks"),
    [("/v1/chat/completions", {"messages": CHAT["messages"], "n": 2}), ("/v1/embeddings", {"input": "x"})],
)
async def test_what_one_api_cannot_express_is_asked_of_the_next_model(
    tmp_path: Path, path: str, asks: dict[str, object]
) -> None:
    """A parameter that one provider's API lacks goes to the route's other model; if none has it, the request is refused
    with its name.
    """
    rules = [{"model": "claude"}]
    routes = [{"name": "auto", "models": ["claude", "echo"], "router": "rules", "rules": rules},
              {"name": "alone", "models": ["claude"]}]  # fmt: skip
    models = [{"name": "claude", "provider": "claude"}, "echo"]
    async with live(tmp_path, models=models, routes=routes) as gateway:
        answer = await post(gateway.url, {**asks, "model": "auto"}, path)
        record = await gateway.decision(answer.headers["x-headgate-decision-id"])
        refused = await post(gateway.url, {**asks, "model": "alone"}, path)
        await gateway.rest()
    assert answer.status_code == 200 and answer.headers["x-headgate-model"] == "echo"
    assert [attempt.model for attempt in record.attempts] == ["echo"] and record.verdict == "fallback"
    assert refused.status_code == 400 and refused.json()["error"]["code"].startswith("unsupported_")


async def test_what_a_model_refuses_by_name_is_asked_of_the_next(tmp_path: Path) -> None:
    """A parameter that one upstream reports as unsupported goes to the next model, and counts against neither request
    nor deployment.
    """
    routes = [{"name": "auto", "models": ["strict", "good"], "router": "rules", "rules": [{"model": "strict"}]}]
    scripts = {"strict": [{"status": 400, "error": "not max_tokens", "error_code": "unsupported_parameter"}]}
    async with live(tmp_path, scripts=scripts, models=["strict", "good"], routes=routes) as gateway:
        answer = await post(gateway.url, {**CHAT, "model": "auto"})
        record = await gateway.decision(answer.headers["x-headgate-decision-id"])
        refused = await post(gateway.url, {**CHAT, "model": "strict"})
        await gateway.rest()
    assert answer.status_code == 200 and answer.headers["x-headgate-model"] == "good"
    assert [attempt.failure for attempt in record.attempts] == ["unsupported", ""]
    told = refused.json()["error"]
    assert (refused.status_code, told["message"], told["code"]) == (400, "not max_tokens", "unsupported_parameter")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
@pytest.mark.parametrize("stream", [False, True])
async def test_fields_are_renamed_and_left_out_for_the_model(tmp_path: Path, path: str, stream: bool) -> None:
    """Fields are renamed and left out by the model's settings; everything else is sent unchanged."""
    strict = {"name": "strict", "rename": {"max_completion_tokens": "max_tokens"},
              "leave_out": ["temperature", "stream_options"]}  # fmt: skip
    limit = "max_completion_tokens" if "chat" in path else "max_tokens"
    asked = {**CHAT, "model": "strict", limit: 9, "temperature": 0.5, "top_p": 0.5, "stream": stream}
    async with live(tmp_path, models=[strict, "echo"]) as gateway:
        answer = await post(gateway.url, asked, path)
        plain = await post(gateway.url, {**CHAT, "model": "strict"})
        await gateway.rest()
        sent, untouched = (json.loads(str(one["body"])) for one in gateway.upstream.seen.recent)
    assert (answer.status_code, plain.status_code) == (200, 200)
    assert {name: sent.get(name) for name in ("max_tokens", "top_p")} == {"max_tokens": 9, "top_p": 0.5}
    assert not {"max_completion_tokens", "temperature", "stream_options"} & sent.keys()
    assert untouched == {**CHAT, "model": "strict"}


async def test_the_held_output_limit_takes_precedence_over_a_renamed_field(tmp_path: Path) -> None:
    """The limit that the budget is held for is the one sent upstream, even if the client sent the upstream's own name
    for it as well.
    """
    strict = {"name": "strict", "rename": {"max_tokens": "max_length"}}
    async with live(tmp_path, models=[strict]) as gateway:
        await post(gateway.url, {**CHAT, "model": "strict", "max_tokens": 9, "max_length": 100_000})
        await gateway.rest()
        (sent,) = (json.loads(str(one["body"])) for one in gateway.upstream.seen.recent)
    assert sent["max_length"] == 9 and "max_tokens" not in sent


async def test_budget_is_held_for_the_worst_case_and_settled_to_the_cent(tmp_path: Path) -> None:
    """A request whose worst case doesn't fit the budget is refused; one that fits costs exactly its price."""
    keys = [{"name": "k", "key": "hg-k", "budget_usd": 0.05}]
    async with live(tmp_path, auth={"keys": keys}) as gateway:
        refused = await post(gateway.url, {**CHAT, "max_tokens": 100_000}, authorization="Bearer hg-k")
        answer = await post(gateway.url, {**CHAT, "max_tokens": 100}, authorization="Bearer hg-k")
        caller = gateway.services.keyring.identify(b"Bearer hg-k", None, "127.0.0.1", 0)
        assert isinstance(gateway.services.ledger, MemoryLedger)
        spent, held = gateway.services.ledger.balance(caller.accounts[0])
    assert refused.status_code == 429 and refused.json()["error"]["code"] == "insufficient_quota"
    assert (spent, held) == (round(float(answer.headers["x-headgate-cost-usd"]) * 1e9), 0)


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (b"{", 400, None),
        (b"[]", 400, None),
        (b'{"messages":[{"role":"user","content":"x"}]}', 400, "model"),
        (b'{"model":7,"messages":[{"role":"user","content":"x"}]}', 400, "model"),
        (b'{"model":"nope","messages":[{"role":"user","content":"x"}]}', 404, "model"),
        (b'{"model":"echo","messages":"x"}', 400, "messages"),
        (b'{"model":"echo","messages":[{"role":"user","content":"\xff"}]}', 400, None),
        (b'{"model":"echo","messages":[{"role":"user","content":"x"}],"stream":"yes"}', 400, "stream"),
        (b'{"model":"echo","messages":[{"role":"user","content":"x"}],"headgate":{"nope":1}}', 400, "headgate.nope"),
        (b'{"model":"echo","messages":[{"role":"user","content":"x"}],"headgate":{"cost_weight":2}}', 400,
         "headgate.cost_weight"),
        (b'{"model":"echo","messages":[{"role":"user","content":"x"}],"headgate":{"route":"nope"}}', 404,
         "headgate.route"),
        (b"[" * 100_000, 400, None),
        (b'{"model":"echo","messages":' + b"[" * 5000 + b"]" * 5000 + b"}", 400, None),
    ],
)
async def test_bad_input_is_refused_in_the_clients_own_shape(
    tmp_path: Path, body: bytes, status: int, param: str | None
) -> None:
    """Bad input gets an error in the client's API, with its param and the right status, and holds nothing."""
    async with live(tmp_path) as gateway, httpx.AsyncClient() as client:
        answer = await client.post(gateway.url + "/v1/chat/completions", content=body)
        gateway.assert_at_rest()
    assert answer.status_code == status, answer.text
    error = msgspec.json.decode(answer.content)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    if param is not None:
        assert error["param"] == param


async def test_a_cap_that_no_model_fits_is_refused_with_every_reason(tmp_path: Path) -> None:
    """The route's default never exceeds a request's own cost cap; nothing is sent upstream."""
    routes = [{"name": "auto", "models": ["small", "large"], "router": "cheapest"}]
    async with live(tmp_path, models=["small", "large"], routes=routes) as gateway:
        body = {**CHAT, "model": "auto", "max_tokens": 1000, "headgate": {"max_cost_usd": 1e-9}}
        answer = await post(gateway.url, body)
        assert gateway.upstream.seen.requests == 0
        gateway.assert_at_rest()
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["code"] == "no_eligible_model"
    assert "small" in error["message"] and "large" in error["message"]


@pytest.mark.parametrize("model", ["learned", "weighted", "cheapest", "ruled", "large"])
async def test_a_cost_cap_holds_with_every_router(tmp_path: Path, model: str) -> None:
    """A model that is expected to cost more than the cap is not asked, neither by a router that doesn't learn nor as a
    pinned model.
    """
    routers = {"learned": "default", "weighted": "weighted", "cheapest": "cheapest", "ruled": "rules"}
    routes: list[Any] = [{"name": name, "models": ["large"], "router": router} for name, router in routers.items()]
    routes[-1]["rules"] = [{"model": "large"}]
    async with live(tmp_path, models=["large"], routes=routes) as gateway:
        dear = await post(gateway.url, {**CHAT, "model": model, "headgate": {"max_cost_usd": 1e-4}})
        assert gateway.upstream.seen.requests == 0
        paid = await post(gateway.url, {**CHAT, "model": model, "headgate": {"max_cost_usd": 1.0}})
        gateway.assert_at_rest()
    assert (dear.status_code, dear.json()["error"]["code"]) == (400, "no_eligible_model"), dear.text
    assert "expected to cost more than max_cost_usd" in dear.json()["error"]["message"]
    assert paid.status_code == 200


async def test_a_knob_that_is_null_is_ignored(tmp_path: Path) -> None:
    """A knob that is null, as a client's None arrives, counts as left out."""
    knobs = ("cost_weight", "min_quality", "max_cost_usd", "max_latency_s", "models", "cache", "route")
    async with live(tmp_path) as gateway:
        for name in knobs:
            answer = await post(gateway.url, {**CHAT, "model": "echo", "headgate": {name: None}})
            assert answer.status_code == 200, answer.text


async def test_no_fallback_breaks_a_requests_own_cap(tmp_path: Path) -> None:
    """A more expensive fallback is asked only if the request's own cost cap allows it."""
    models = [{"name": "small"}, {"name": "large", "output_usd_per_mtok": 1000.0}]
    routes = [{"name": "auto", "models": ["small"], "fallback": ["large"], "retries": 0}]
    async with live(tmp_path, scripts={"small": [{"status": 503}]}, models=models, routes=routes) as gateway:
        capped = await post(gateway.url, {**CHAT, "model": "auto", "headgate": {"max_cost_usd": 0.01}})
        free = await post(gateway.url, {**CHAT, "model": "auto"})
        gateway.assert_at_rest()
    assert capped.status_code >= 500 and free.headers["x-headgate-model"] == "large"


async def test_a_router_that_cannot_decide_falls_back_to_the_default(tmp_path: Path) -> None:
    """When no rule matches, the route's default answers, and the record and the metrics say so."""
    rules = [{"keywords": ["never said"], "model": "large"}]
    routes = [{"name": "auto", "models": ["small", "large"], "router": "rules", "rules": rules,
               "default_model": "small"}]  # fmt: skip
    async with live(tmp_path, models=["small", "large"], routes=routes) as gateway:
        answer = await post(gateway.url, {**CHAT, "model": "auto"})
        metrics = (await httpx.AsyncClient().get(gateway.url + "/metrics")).text
    assert answer.headers["x-headgate-model"] == "small"
    assert answer.headers["x-headgate-reason"].startswith("default:")
    assert 'headgate_router_undecided_total{route="auto"} 1.0' in metrics


async def test_feedback_for_an_impossible_id_is_not_found(tmp_path: Path) -> None:
    """Feedback for an unknown but possible id is kept, because its decision may still arrive from another replica."""
    async with live(tmp_path) as gateway:
        answer = await post(gateway.url, CHAT)
        decision = answer.headers["x-headgate-decision-id"]
        ids = [{"decision_id": decision}, {"response_id": answer.json()["id"]},
               {"request_id": answer.headers["x-request-id"]},
               {"decision_id": "dec_0123456789abcdef00000001"}]  # fmt: skip
        none_such = [{"decision_id": "nope"}, {"request_id": decision}, {"response_id": "x" * 600},
                     {**ids[0], "request_id": "\n"}]  # fmt: skip
        for said, status in [*((one, 200) for one in ids), *((one, 404) for one in none_such), ({}, 400)]:
            told = await post(gateway.url, {**said, "score": 1.0}, "/v1/feedback")
            assert told.status_code == status, said
        kept = [one for one in records_in(spool_dir(str(tmp_path / "run"))) if isinstance(one, FeedbackRecord)]
    assert len(kept) == len(ids)


async def test_a_keys_feedback_counts_within_its_tenant_only(tmp_path: Path) -> None:
    """Ids of decisions can be guessed, so a key's feedback counts within its tenant; labels and references are reserved
    for the operator and the gateway.
    """
    keys = [{"name": name, "key": f"hg-{name}", "tenant": name} for name in ("a", "b")]
    asked = [("a", {"source": "label"}), ("b", {"source": "reference"}), ("a", {"source": "check"}), ("b", {}),
             ("master", {"source": "label"})]  # fmt: skip
    statuses = []
    async with live(tmp_path, auth={"keys": keys, "master_key": "hg-master"}) as gateway:
        answer = await post(gateway.url, CHAT, authorization="Bearer hg-a")
        for name, more in asked:
            said = {"decision_id": answer.headers["x-headgate-decision-id"], "score": 0.0, **more}
            told = await post(gateway.url, said, "/v1/feedback", authorization=f"Bearer hg-{name}")
            statuses.append(told.status_code)
        kept = [one for one in records_in(spool_dir(str(tmp_path / "run"))) if isinstance(one, FeedbackRecord)]
    assert statuses == [400, 400, 200, 200, 200]
    assert [record.tenant for record in kept] == ["a", "b", ANY_TENANT]
