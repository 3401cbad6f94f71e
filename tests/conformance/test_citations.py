"""Citations of an answer, in the form of each client's API."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conformance.fixed import Json, completion, completion_events, fixed, message, message_events
from tests.conformance.test_surfaces import TURNS

RAIN = {"type": "web_search_result_location", "cited_text": "Rain in Bern", "encrypted_index": "Eo8B",
        "title": "Weather", "url": "https://example.com/bern"}  # fmt: skip
SUN = {**RAIN, "title": None, "url": "https://example.com/sun", "cited_text": "Sun"}
PAGE = {"type": "char_location", "cited_text": "All is well.", "document_index": 0, "document_title": "Letter",
        "start_char_index": 0, "end_char_index": 12}  # fmt: skip
TEXTS = ("Well: ", "it rains", ", later ", "the sun ☀ shines", ".")
CITES: tuple[list[Json], ...] = ([], [RAIN], [], [SUN, RAIN], [])
SEARCH: Json = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "x"}}
FOUND: Json = {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []}
WANTED = [(6, 14, "Weather", RAIN["url"]), (22, 38, SUN["url"], SUN["url"]), (22, 38, "Weather", RAIN["url"])]
ASK: Json = {"model": "m", "messages": TURNS}


def text(said: str, *citations: Json) -> Json:
    return {"type": "text", "text": said, "citations": list(citations) or None}


def text_events(said: str, *citations: Json, first: bool = False) -> tuple[Json, list[Json]]:
    """`first`: the citations come before the text, as they may in Anthropic's API."""
    cites = [{"type": "citations_delta", "citation": one} for one in citations]
    says = [{"type": "text_delta", "text": piece} for piece in (said[:2], said[2:]) if piece]
    return text(""), [*cites, *says] if first else [*says, *cites]


def whole() -> Json:
    return message(SEARCH, FOUND, *(text(said, *cites) for said, cites in zip(TEXTS, CITES, strict=True)))


def streamed(first: bool) -> list[Json]:
    said = [text_events(said, *cites, first=first) for said, cites in zip(TEXTS, CITES, strict=True)]
    return message_events((SEARCH, []), (FOUND, []), *said)


def places(annotations: list[Any], *, nested: bool) -> list[tuple[int, int, str, str]]:
    assert {one.type for one in annotations} == {"url_citation"}
    pages = [one.url_citation if nested else one for one in annotations]
    return [(one.start_index, one.end_index, one.title, one.url) for one in pages]


async def test_what_claude_cites_is_annotated_in_a_chat(tmp_path: Path) -> None:
    """Annotations name characters of the answer, as OpenAI's search models do, and come in one delta of a stream."""
    async with fixed(tmp_path, "anthropic", whole()) as home:
        sdk = home.sdk("openai")
        answer = (await sdk.do("chat.completions.create", **ASK)).choices[0].message
        assert answer.content == "".join(TEXTS) and places(answer.annotations, nested=True) == WANTED
        assert answer.content[22:38] == "the sun ☀ shines"
        assert [one.url_citation.content for one in answer.annotations] == ["Rain in Bern", "Sun", "Rain in Bern"]
        for first in (False, True):
            home.answer = streamed(first)
            chunks = await sdk.events("chat.completions.create", **ASK, stream=True)
            (delta,) = [one.choices[0].delta for one in chunks if "annotations" in one.choices[0].delta.model_extra]
            assert len(delta.annotations) == 3
            _, final = await sdk.helped("chat.completions.stream", "get_final_completion", **ASK)
            assert final.choices[0].message.content == answer.content
            assert places(final.choices[0].message.annotations, nested=True) == WANTED


async def test_what_claude_cites_is_annotated_in_a_response(tmp_path: Path) -> None:
    """Each annotation has an event of its own, also when the response is replayed."""
    async with fixed(tmp_path, "anthropic", whole()) as home:
        sdk = home.sdk("openai")
        made = await sdk.do("responses.create", model="m", input="x")
        (part,) = made.output[-1].content
        assert part.text == "".join(TEXTS) and places(part.annotations, nested=False) == WANTED
        assert set(part.annotations[0].to_dict()) == {"type", "start_index", "end_index", "title", "url"}
        home.answer = streamed(first=True)
        events = await sdk.events("responses.create", model="m", input="x", stream=True)
        again = await sdk.events("responses.retrieve", response_id=events[-1].response.id, stream=True)
        for told in (events, again):
            added = [one for one in told if one.type == "response.output_text.annotation.added"]
            assert [one.annotation_index for one in added] == [0, 1, 2]
            (part,) = told[-1].response.output[-1].content
            assert part.text == "".join(TEXTS) and places(part.annotations, nested=False) == WANTED
            assert [one.annotation.to_dict() for one in added] == [one.to_dict() for one in part.annotations]


async def test_citations_of_a_part_count_from_its_start(tmp_path: Path) -> None:
    """Thinking between two texts makes two parts in the Responses API, and one text in chat."""
    thinking: Json = {"type": "thinking", "thinking": "", "signature": ""}
    thought = (thinking, [{"type": "thinking_delta", "thinking": "hm"}])
    events = message_events(text_events("It may ", RAIN), thought, text_events("rain", SUN))
    async with fixed(tmp_path, "anthropic", events) as home:
        sdk = home.sdk("openai")
        response = (await sdk.events("responses.create", model="m", input="x", stream=True))[-1].response
        parts = [item.content[0] for item in response.output if item.type == "message"]
        assert [part.text for part in parts] == ["It may ", "rain"]
        assert [places(part.annotations, nested=False)[0][:2] for part in parts] == [(0, 7), (0, 4)]
        _, final = await sdk.helped("chat.completions.stream", "get_final_completion", **ASK)
        found = places(final.choices[0].message.annotations, nested=True)
        assert [place[:2] for place in found] == [(0, 7), (7, 11)]


async def test_a_document_is_cited(tmp_path: Path) -> None:
    """A document is cited if its part has Anthropic's `citations`. It has no URL, so in a response it is a file."""
    file = {"filename": "Letter", "file_data": "data:application/pdf;base64,AAAA"}
    part = {"type": "file", "file": file, "citations": {"enabled": True}}
    async with fixed(tmp_path, "anthropic", message(text("So it is.", {**PAGE, "file_id": "file_1"}))) as home:
        sdk = home.sdk("openai")
        chat = await sdk.do("chat.completions.create", model="m", messages=[{"role": "user", "content": [part]}])
        (block,) = home.asked["messages"][0]["content"]
        assert block["citations"] == {"enabled": True} and block["title"] == "Letter"
        assert places(chat.choices[0].message.annotations, nested=True) == [(0, 9, "Letter", "")]
        assert chat.choices[0].message.annotations[0].url_citation.content == "All is well."
        made = await sdk.do("responses.create", model="m", input="x")
        (one,) = made.output[0].content[0].annotations
        wanted = {"type": "file_citation", "file_id": "file_1", "filename": "Letter", "index": 9}
        assert one.to_dict() == wanted


@pytest.mark.parametrize("how", ["whole", "streamed", "first"])
async def test_what_a_chat_cites_is_cited_in_a_message(tmp_path: Path, how: str) -> None:
    """Citations become search results in a message, and are removed when the conversation goes to Anthropic."""
    page = {"start_index": 0, "end_index": 2, "title": "Rain", "url": "https://example.com", "content": "Rain!"}
    cites: Json = {"annotations": [{"type": "url_citation", "url_citation": page}, {"type": "url_citation"}]}
    answer: Any = completion(content="it rains", **cites)
    if how == "streamed":
        answer = completion_events({"role": "assistant", "content": ""}, {"content": "it rains"}, cites)
    elif how == "first":
        answer = completion_events({"role": "assistant", "content": "", **cites}, {"content": "it rains"})
    ask: Json = {"model": "m", "max_tokens": 9}
    async with fixed(tmp_path, "openai", answer) as home:
        sdk = home.sdk("anthropic")
        if how == "whole":
            told = await sdk.do("messages.create", messages=TURNS, **ask)
        else:
            events, told = await sdk.helped("messages.stream", "get_final_message", messages=TURNS, **ask)
            assert [one.citation.url for one in events if one.type == "citation"] == [page["url"]]
        (block,) = told.content
        (one,) = block.citations
        assert (one.type, one.title, one.url, one.cited_text) == (
            "web_search_result_location", "Rain", page["url"], "Rain!",
        )  # fmt: skip
    said = {"role": "assistant", "content": [{**block.to_dict(), "citations": [one.to_dict(), RAIN]}]}
    async with fixed(tmp_path / "claude", "anthropic", message(text("ok"))) as home:
        await home.sdk("anthropic").do("messages.create", messages=[*TURNS, said, *TURNS], **ask)
        (block,) = home.asked["messages"][1]["content"]
        assert block["text"] == "it rains" and block["citations"] == [RAIN]


async def test_plain_answers_have_no_annotations(tmp_path: Path) -> None:
    """Answers without citations have neither annotations nor an additional chunk."""
    async with fixed(tmp_path, "anthropic", message_events(text_events("hello"))) as home:
        sdk = home.sdk("openai")
        chunks = await sdk.events("chat.completions.create", **ASK, stream=True)
        assert [one.choices[0].delta.to_dict() for one in chunks] == [
            {"role": "assistant", "content": ""}, {"content": "he"}, {"content": "llo"}, {},
        ]  # fmt: skip
        home.answer = message(text("hello"))
        chat = await sdk.do("chat.completions.create", **ASK)
        assert chat.choices[0].message.annotations is None
