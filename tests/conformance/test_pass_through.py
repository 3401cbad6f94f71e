"""What passes as it is - sound, pictures, moderation, reranking - by the official client, with limits, money, failover
and the record that any request has.
"""

from __future__ import annotations

import asyncio
import io
import wave
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import msgspec
import openai
import pytest

from gateway.wire.pass_stream import PassStream
from gateway.wire.pass_through import PASSED_PATHS, describe_passed, peek_passed, read_fields, read_upload
from gateway.wire.usage import Usage
from tests.conformance.clients import MODES
from tests.conformance.studio import Asked, Said, Studio, studio

SOUND = bytes(range(256)) * 300
HEARD = {"text": "so it is", "usage": {"type": "duration", "seconds": 61}}
COUNTED = {"text": "so it is", "usage": {"type": "tokens", "input_tokens": 40, "output_tokens": 12, "total_tokens": 52,
           "input_token_details": {"text_tokens": 10, "audio_tokens": 30}}}  # fmt: skip
PICTURES = {"created": 1, "data": [{"b64_json": "aGk="}, {"b64_json": "aG8="}]}
JUDGED = {"id": "modr-1", "model": "up", "results": [{"flagged": True, "categories": {}, "category_scores": {}}]}
RANKED = {"id": "r", "results": [{"index": 1, "relevance_score": 0.9}], "meta": {"billed_units": {"search_units": 2}}}
UNIT = 1_000_000
"""Price in billionths of a dollar for `unit_usd = 0.001`."""
PRICED = {"unit_usd": 0.001, "input_usd_per_mtok": 0.0, "output_usd_per_mtok": 0.0}


def wav(seconds: int) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 2, 8000, 0, "NONE", ""))
        out.writeframes(bytes(16_000 * seconds))
    return file.getvalue()


def fields_of(asked: Asked) -> Mapping[str, str]:
    return read_upload(asked.headers["content-type"].encode(), asked.body).fields


async def sent(home: Studio, path: str, mode: str = "async", **body: Any) -> Any:
    """A call by the official client, with the headers of the answer."""
    return await home.sdk("openai", mode).do(f"{path}.with_raw_response.create", **body)


@pytest.mark.parametrize("mode", MODES)
async def test_speech_comes_as_it_is_made(tmp_path: Path, mode: str) -> None:
    """Every byte arrives with the upstream's content type, and is billed by the character before the end."""
    parts = [SOUND[at : at + 7000] for at in range(0, len(SOUND), 7000)]
    async with studio(tmp_path, {"/audio/speech": Said(parts, "audio/mpeg")}, [{"name": "voice", **PRICED}]) as home:
        answer = await sent(home, "audio.speech", mode, model="voice", voice="alloy", input="Good day")
        assert answer.content == SOUND and answer.headers["content-type"] == "audio/mpeg"
        record = await home.decision(answer.headers)
    assert home.asked[0].json == {"model": "voice", "voice": "alloy", "input": "Good day"}
    assert home.asked[0].headers["authorization"] == "Bearer sk-upstream-secret"
    assert record.surface == "speech" and record.status == 200 and record.answered_model == "voice"
    assert record.cost_nanousd == 8 * UNIT and record.held_nanousd == 2 * record.cost_nanousd  # it may be tried twice
    assert record.attempts[0].usage["units"] == 8


async def test_the_first_sound_does_not_wait_for_the_last(tmp_path: Path) -> None:
    said = Said([b"a" * 1000] * 4, "audio/mpeg", gap_s=0.2)
    async with studio(tmp_path, {"/audio/speech": said}, [{"name": "voice"}]) as home:
        client = home.sdk("openai").client.audio.speech.with_streaming_response
        async with client.create(model="voice", voice="alloy", input="Good day") as answer:
            first = await anext(answer.iter_bytes(1000))
            assert first == b"a" * 1000 and home.live.app.in_flight == 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("answer", [HEARD, COUNTED])
async def test_a_transcription_keeps_the_form_and_is_billed_by_what_it_says(
    tmp_path: Path, mode: str, answer: Mapping[str, Any]
) -> None:
    """Only the model's name is replaced in the client's bytes; the answer's seconds or tokens are billed."""
    model = {"name": "ear", "upstream_name": "whisper-9", "unit_usd": 0.001, "input_usd_per_mtok": 2.0,
             "audio_input_usd_per_mtok": 6.0, "output_usd_per_mtok": 10.0}  # fmt: skip
    async with studio(tmp_path, {"/audio/transcriptions": Said(answer)}, [model]) as home:
        told = await sent(home, "audio.transcriptions", mode, model="ear", file=("a.mp3", SOUND), prompt="names: Bern")
        assert told.parse().text == "so it is"
        record = await home.decision(told.headers)
    assert fields_of(home.asked[0]) == {"model": "whisper-9", "prompt": "names: Bern"}
    assert SOUND in home.asked[0].body
    (attempt,) = record.attempts
    if answer is HEARD:
        assert attempt.usage == {"units": 61} and record.cost_nanousd == 61 * UNIT
    else:
        tokens = 10 * 2000 + 30 * 6000 + 12 * 10_000
        assert attempt.usage["audio_input"] == 30 and record.cost_nanousd - attempt.usage["units"] * UNIT == tokens
    assert not attempt.estimated and record.cost_nanousd <= record.held_nanousd


async def test_a_text_without_usage_is_billed_by_how_long_the_recording_is(tmp_path: Path) -> None:
    answers = {"/audio/translations": Said(b"1\n00:00:00,000 --> 00:00:02,000\nHi\n", "text/plain; charset=utf-8")}
    async with studio(tmp_path, answers, [{"name": "ear", **PRICED}]) as home:
        sdk = home.sdk("openai")
        told = await sdk.do("audio.translations.with_raw_response.create", model="ear", file=("a.wav", wav(7)),
                            response_format="srt")  # fmt: skip
        assert told.text.endswith("Hi\n") and told.headers["content-type"].startswith("text/plain")
        record = await home.decision(told.headers)
    assert record.attempts[0].estimated and record.cost_nanousd == 8 * UNIT  # 7 s and the header, rounded up


def events_of(*events: Mapping[str, Any]) -> list[bytes]:
    return [f"event: {one['type']}\ndata: {msgspec.json.encode(one).decode()}\n\n".encode() for one in events]


DELTA = {"type": "transcript.text.delta", "delta": "so"}
DONE = {"type": "transcript.text.done", "text": "so it is", "usage": COUNTED["usage"]}


async def transcription_events(home: Studio, mode: str = "async") -> tuple[list[Any], Mapping[str, str]]:
    """A transcription's events, and the headers of the answer."""
    raw = await sent(home, "audio.transcriptions", mode, model="ear", file=("a.mp3", SOUND), stream=True)
    stream = raw.parse()
    if mode == "async":
        return [event async for event in stream], raw.headers
    return await asyncio.to_thread(list, stream), raw.headers


@pytest.mark.parametrize("mode", MODES)
async def test_events_of_a_transcription(tmp_path: Path, mode: str) -> None:
    """The events arrive unchanged, and the usage in the last one is billed."""
    said = Said(events_of(DELTA, DONE), "text/event-stream")
    async with studio(tmp_path, {"/audio/transcriptions": said}, [{"name": "ear"}]) as home:
        seen, headers = await transcription_events(home, mode)
        assert [event.type for event in seen] == [DELTA["type"], DONE["type"]]
        record = await home.decision(headers)
    assert record.attempts[0].usage["output"] == 12 and record.stream
    assert 0 < record.cost_nanousd <= record.held_nanousd


@pytest.mark.parametrize(
    ("said", "error"),
    [(Said(events_of(DELTA), "text/event-stream"), "without its end"),
     (Said(events_of(DELTA), "text/event-stream", cut=True), "closed the connection"),
     (Said(events_of(DELTA, {"type": "error", "error": {"message": "no ear"}}), "text/event-stream"), "no ear"),
     (Said([*events_of(DELTA), b"data: " + b"x" * 9_000_000], "text/event-stream"), "exceeds")],
)  # fmt: skip
async def test_events_that_break_off_end_with_an_error(tmp_path: Path, said: Said, error: str) -> None:
    async with studio(tmp_path, {"/audio/transcriptions": said}, [{"name": "ear"}]) as home:
        with pytest.raises(openai.APIError, match=error):
            await transcription_events(home)


async def test_sound_that_breaks_off_is_never_taken_for_whole(tmp_path: Path) -> None:
    """Only a broken connection shows that sound is incomplete. The request is billed by its estimate."""
    said = Said([SOUND[:1000], SOUND[1000:2000]], "audio/mpeg", cut=True)
    async with studio(tmp_path, {"/audio/speech": said}, [{"name": "voice", **PRICED}]) as home:
        got = b""
        async with httpx.AsyncClient() as client:
            body = {"model": "voice", "voice": "alloy", "input": "Good day"}
            with pytest.raises(httpx.RemoteProtocolError):
                async with client.stream("POST", home.live.url + "/v1/audio/speech", json=body) as answer:
                    async for part in answer.aiter_raw():
                        got += part
        assert got == SOUND[:2000]
        record = await home.decision(answer.headers)
    assert record.error and record.attempts[0].failure == "reset" and record.cost_nanousd == 8 * UNIT


async def test_a_client_that_leaves_ends_the_sound(tmp_path: Path) -> None:
    said = Said([b"a" * 1000] * 500, "audio/mpeg", gap_s=0.02)
    async with studio(tmp_path, {"/audio/speech": said}, [{"name": "voice", **PRICED}]) as home:
        body = {"model": "voice", "voice": "alloy", "input": "Good day"}
        url = home.live.url + "/v1/audio/speech"
        async with httpx.AsyncClient() as client, client.stream("POST", url, json=body) as answer:
            await anext(answer.aiter_raw())
        record = await home.decision(answer.headers)
    assert record.attempts[0].failure == "cancelled" and record.status == 499 and record.cost_nanousd == 8 * UNIT


async def test_pictures(tmp_path: Path) -> None:
    """Generated, edited and varied pictures are billed by their number in the answer."""
    answers = {path: Said(PICTURES) for path in ("/images/generations", "/images/edits", "/images/variations")}
    async with studio(tmp_path, answers, [{"name": "brush", **PRICED}]) as home:
        png = ("a.png", b"\x89PNG" + SOUND)
        bodies: dict[str, Any] = {"generate": {"prompt": "a heron"}, "edit": {"image": [png, png], "prompt": "blue"},
                                  "create_variation": {"image": png}}  # fmt: skip
        for call, body in bodies.items():
            answer = await home.sdk("openai").do(f"images.with_raw_response.{call}", model="brush", n=3, **body)
            assert len(answer.parse().data) == 2
            record = await home.decision(answer.headers)
            assert (record.cost_nanousd, record.held_nanousd) == (2 * UNIT, 6 * UNIT), call
    assert home.asked[1].body.count(SOUND) == 2


async def test_a_picture_on_its_way(tmp_path: Path) -> None:
    """Partial pictures arrive first, and the last event's tokens are billed."""
    last = {"type": "image_generation.completed", "b64_json": "aGk=", "usage": {"input_tokens": 9, "output_tokens": 272,
            "total_tokens": 281, "input_tokens_details": {"image_tokens": 0, "text_tokens": 9}}}  # fmt: skip
    sketch = {"type": "image_generation.partial_image", "b64_json": "aA==", "partial_image_index": 0}
    said = Said(events_of(sketch, last), "text/event-stream")
    async with studio(tmp_path, {"/images/generations": said}, [{"name": "brush"}]) as home:
        raw = await home.sdk("openai").do("images.with_raw_response.generate", model="brush", prompt="a heron",
                                          stream=True, partial_images=1)  # fmt: skip
        assert [event.type async for event in raw.parse()] == [sketch["type"], last["type"]]
        record = await home.decision(raw.headers)
    assert record.cost_nanousd == 9 * 1000 + 272 * 4000


@pytest.mark.parametrize(
    ("surface", "told", "usage"),
    [("images", [("image_generation.partial_image", 9, 100), ("image_generation.completed", 9, 272)],
      Usage(input_tokens=9, output_tokens=272, units=1, known=True)),
     ("images", [("image_generation.completed", 9, 272), ("image_generation.completed", 9, 544)],
      Usage(input_tokens=9, output_tokens=544, units=2, known=True)),
     ("transcriptions", [("transcript.text.delta", 40, 7), ("transcript.text.done", 40, 12)],
      Usage(input_tokens=40, output_tokens=12, known=True)),
     ("transcriptions", [("transcript.text.delta", 40, 12), ("transcript.text.done", 0, 0)],
      Usage(input_tokens=40, output_tokens=12, known=True)),
     ("speech", [("speech.audio.delta", 5, 10), ("speech.audio.done", 5, 50)],
      Usage(input_tokens=5, audio_output_tokens=50, known=True))],
)  # fmt: skip
def test_usage_that_several_events_tell_counts_once(
    surface: str, told: list[tuple[str, int, int]], usage: Usage
) -> None:
    """Usage is cumulative, so only the last report counts."""
    flow = PassStream(surface, b"text/event-stream")
    flow.feed(b"".join(events_of(*({"type": kind, "usage": {"input_tokens": into, "output_tokens": out,
                                    "total_tokens": into + out}} for kind, into, out in told))))  # fmt: skip
    assert flow.end() is None and flow.usage == usage


async def test_moderation_without_a_model(tmp_path: Path) -> None:
    """A request without a model, as the official client sends it, gets the default model."""
    async with studio(tmp_path, {"/moderations": Said(JUDGED)}, [{"name": "omni-moderation-latest"}]) as home:
        answer = await sent(home, "moderations", input="I will find you")
        assert answer.parse().results[0].flagged
        record = await home.decision(answer.headers)
    assert home.asked[0].json == {"input": "I will find you", "model": "omni-moderation-latest"}
    assert record.answered_model == "omni-moderation-latest"


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
async def test_rerank(tmp_path: Path, path: str) -> None:
    async with studio(tmp_path, {"/rerank": Said(RANKED)}, [{"name": "order", **PRICED}]) as home:
        body = {"model": "order", "query": "warm?", "documents": ["ice"] * 150, "top_n": 1}
        async with httpx.AsyncClient() as client:
            answer = await client.post(home.live.url + path, json=body)
        assert answer.json() == RANKED
        record = await home.decision(answer.headers)
    assert home.asked[0].json == body and record.cost_nanousd == 2 * UNIT


async def test_azure_on_both_sides(tmp_path: Path) -> None:
    """Azure's paths with the deployment work from a client and towards the upstream."""
    models = [{"name": "ear", "upstream_name": "ear-eu"}]
    async with studio(tmp_path, {"/audio/transcriptions": Said(HEARD)}, models, kind="azure") as home:
        sdk = home.sdk("azure")
        assert (await sdk.do("audio.transcriptions.create", model="ear", file=("a.mp3", SOUND))).text == "so it is"
    assert home.asked[0].path.startswith("/openai/deployments/ear-eu/audio/transcriptions?api-version=")
    assert home.asked[0].headers["api-key"] == "sk-upstream-secret"
    assert fields_of(home.asked[0])["model"] == "ear-eu"


async def test_a_route_asks_its_models_in_turn(tmp_path: Path) -> None:
    """A query that tells no model from another takes the first that answers, however the route chooses otherwise; what
    a provider has no such endpoint for is passed over.
    """
    models = [{"name": "claude", "provider": "claude"}, {"name": "one", "upstream_name": "up-1"},
              {"name": "two", "upstream_name": "up-2"}]  # fmt: skip
    routes = [{"name": "ears", "models": ["claude", "one", "two"], "cache": "exact"}]
    answers = {"/audio/transcriptions": [Said({"error": {"message": "busy"}}, status=503)] * 2 + [Said(HEARD)]}
    async with studio(tmp_path, answers, models, routes=routes) as home:
        for _ in range(2):
            told = await sent(home, "audio.transcriptions", model="ears", file=("a.mp3", SOUND))
            assert told.headers["x-headgate-reason"] == "listed" and told.headers["x-headgate-cache"] == "off"
            record = await home.decision(told.headers)
            assert record.answered_model in ("one", "two") and record.route == "ears"
    assert record.attempts[0].failure == "" and len(home.asked) == 4


async def test_a_whole_answer_that_breaks_off_is_asked_for_again(tmp_path: Path) -> None:
    answers = {"/images/generations": [Said(PICTURES, cut=True), Said(PICTURES)]}
    async with studio(tmp_path, answers, [{"name": "brush"}]) as home:
        answer = await home.sdk("openai").do("images.generate", model="brush", prompt="a heron")
        assert len(answer.data) == 2
    assert len(home.asked) == 2


async def test_a_budget_holds_the_worst_case(tmp_path: Path) -> None:
    """A picture is refused if its largest cost exceeds the budget or the caller's own cap."""
    auth = {"keys": [{"name": "k", "key": "hg-k", "budget_usd": 0.0045}]}
    answers = {"/images/generations": Said(PICTURES)}
    async with studio(tmp_path, answers, [{"name": "brush", **PRICED}], auth=auth) as home:
        sdk = home.sdk("openai", api_key="hg-k")
        with pytest.raises(openai.RateLimitError):
            await sdk.do("images.generate", model="brush", prompt="a heron", n=3)
        capped = {"x-headgate-max-cost-usd": "0.001"}
        with pytest.raises(openai.BadRequestError, match="may not answer"):
            await sdk.do("images.generate", model="brush", prompt="a heron", n=2, extra_headers=capped)
        await sdk.do("images.generate", model="brush", prompt="a heron", n=2)
    assert len(home.asked) == 1


async def test_an_error_of_the_upstream_is_the_clients(tmp_path: Path) -> None:
    refused = Said({"error": {"message": "no such voice", "param": "voice", "code": "bad_voice"}}, status=400)
    async with studio(tmp_path, {"/audio/speech": refused}, [{"name": "voice"}]) as home:
        with pytest.raises(openai.BadRequestError, match="no such voice") as caught:
            await sent(home, "audio.speech", model="voice", voice="?", input="Good day")
        assert caught.value.param == "voice" and caught.value.response.headers["x-headgate-model"] is not None


async def test_a_provider_without_such_an_endpoint(tmp_path: Path) -> None:
    async with studio(tmp_path, {}, [{"name": "claude", "provider": "claude"}]) as home:
        with pytest.raises(openai.BadRequestError, match="has no speech") as caught:
            await sent(home, "audio.speech", model="claude", voice="alloy", input="Good day")
        assert caught.value.code == "unsupported_endpoint"


FORM = {"content-type": "multipart/form-data; boundary=x"}
HEAD = b'\r\ncontent-disposition: form-data; name="model"\r\n\r\n'
PART = b'--x\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n'


@pytest.mark.parametrize(
    ("path", "body", "headers", "param"),
    [("/v1/audio/speech", b'{"model": "m"}', {}, "input"),
     ("/v1/audio/speech", b'{"model": "m", "input": 7}', {}, "input"),
     ("/v1/audio/speech", b'{"input": "x"}', {}, "model"),
     ("/v1/audio/speech", b'{"model": 7, "input": "x"}', {}, "model"),
     ("/v1/audio/speech", b"[]", {}, None),
     ("/v1/audio/speech", b"\xff", {}, None),
     ("/v1/images/generations", b'{"model": "m", "prompt": "x", "n": 0}', {}, "n"),
     ("/v1/images/generations", b'{"model": "m", "prompt": "x", "n": true}', {}, "n"),
     ("/v1/images/generations", b'{"model": "m", "prompt": "x", "n": "many"}', {}, "n"),
     ("/v1/moderations", b'{"model": "m", "input": []}', {}, "input"),
     ("/v1/rerank", b'{"model": "m", "query": "x"}', {}, "documents"),
     ("/v1/audio/transcriptions", PART % (b"model", b"m") + b"--x--", FORM, "file"),
     ("/v1/audio/transcriptions", PART % (b"model", b"m"), FORM, None),
     ("/v1/audio/transcriptions", b"", {"content-type": "multipart/form-data"}, None),
     ("/v1/images/edits", (PART % (b"a", b"m")) * 100 + b"--x--", FORM, None),
     ("/v1/images/edits", PART % (b"model", b"dear") + PART % (b"model", b"m") + b"--x--", FORM, "model"),
     ("/v1/images/edits", PART % (b"n", b"9") + PART % (b"n", b"1") + b"--x--", FORM, "n"),
     ("/v1/images/edits", PART % (b'a"; name="model', b"m") + b"--x--", FORM, None),
     ("/v1/images/edits", (PART % (b"a", b"m")).replace(b"\r\n\r\n", HEAD) + b"--x--", FORM, None),
     ("/v1/images/generations", b'{"model": "m", "prompt": "x", "N": 9}', {}, "N")],
)  # fmt: skip
async def test_bad_input(tmp_path: Path, path: str, body: bytes, headers: dict[str, str], param: str | None) -> None:
    async with studio(tmp_path, {}, [{"name": "m"}]) as home, httpx.AsyncClient() as client:
        answer = await client.post(home.live.url + path, content=body, headers=headers)
        assert answer.status_code == 400 and answer.json()["error"]["param"] == param
        assert not home.asked


async def test_other_methods_are_told(tmp_path: Path) -> None:
    async with studio(tmp_path, {}, [{"name": "m"}]) as home, httpx.AsyncClient() as client:
        for path in PASSED_PATHS.keys() - {"/v1/responses/compact"}:  # where a response may be asked for
            answer = await client.get(home.live.url + path)
            assert answer.status_code == 405 and answer.headers["allow"] == "POST"


def test_a_recordings_length_is_only_taken_from_a_sound_header() -> None:
    """For any upload without a valid WAV header the hold assumes the longest duration."""
    honest = describe_passed("transcriptions", {}, 0, [memoryview(wav(60))])
    assert honest.units == 61
    for at, value in ((20, b"\x11"), (28, b"\xff\xff\xff\x7f"), (34, b"\0\0")):
        data = bytearray(wav(60))
        data[at : at + len(value)] = value
        assert describe_passed("transcriptions", {}, 0, [memoryview(bytes(data))]).units > 1000


def test_every_text_that_a_model_may_read_is_held_for() -> None:
    """Instructions for speech count as well as its input; pictures in JSON count by number and not by length."""
    told = {"model": "m", "input": "Hi", "instructions": "slowly " * 900, "image": "x" * 9000}
    raw = {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in told.items()}
    assert 6300 < describe_passed("speech", *read_fields(raw)).input_tokens_bound < 6400
    form = b"".join(PART % (name, b"w" * 5000) for name in (b"prompt", b"style")) + b"--x--"
    upload = read_upload(FORM["content-type"].encode(), form)
    described = describe_passed("image_edits", upload.fields, upload.text_bytes, [memoryview(b"png")])
    assert described.input_tokens_bound == 10_000 + 1600


@pytest.mark.parametrize(
    ("surface", "answer", "usage"),
    [("speech", b'{"type":"speech.audio.done","usage":{"input_tokens":5,"output_tokens":50,"total_tokens":55}}',
      Usage(input_tokens=5, audio_output_tokens=50, known=True)),
     ("transcriptions", b'{"text":"x","duration":8.47}', Usage(units=9, known=True)),
     ("rerank", b'{"usage":{"total_tokens":31}}', Usage(input_tokens=31, known=True)),
     ("rerank", b'{"meta":{"billed_units":{"search_units":"x"}}}', Usage()),
     ("transcriptions", b'{"usage":{"type":"duration","seconds":-4}}', Usage()),
     ("images", b'{"data":null,"usage":7}', Usage()),
     ("images", b"no JSON", Usage())],
)  # fmt: skip
def test_what_an_answer_says_that_it_used(surface: str, answer: bytes, usage: Usage) -> None:
    assert peek_passed(answer, surface).usage == usage
