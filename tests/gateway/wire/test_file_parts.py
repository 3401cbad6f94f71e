"""Parts that name files: found on every surface, replaced by the contents, and refused if they can't name one."""

from __future__ import annotations

import base64
import json
from typing import Any

import msgspec
import pytest

from gateway.errors import CallerError, TooLarge
from gateway.wire.body import Raw, to_raw
from gateway.wire.describe import describe
from gateway.wire.file_parts import Content, content_of, find, is_ours, media_type, put

OURS, OTHER = "file_" + "0" * 28, "file-abc123"
OUTPUT = f"file-batch_{'0' * 28}-output"
PDF, PNG = b"%PDF-1.4 x", b"\x89PNG\r\n\x1a\nx"
SOURCE = "messages[0].content[0].source.file_id"
FIELDS = {"chat": "messages", "responses": "input", "messages": "messages"}


def raw(surface: str, *parts: Any) -> Raw:
    return to_raw({"model": "m", FIELDS[surface]: [{"role": "user", "content": list(parts)}]})


def resolved(surface: str, part: Any, name: str, data: bytes, most: int = 10_000) -> Any:
    """The part with the file's content."""
    asked = raw(surface, {"type": "text", "text": "hi"}, part)
    prompt = find(asked, surface)
    assert prompt is not None
    content = content_of(name, data, surface)
    made = put(asked, surface, prompt, {place.id: content for place in prompt.places}, most)
    return json.loads(bytes(made[FIELDS[surface]]))[0]["content"][1]


def chat(**file: Any) -> dict[str, Any]:
    return {"type": "file", "file": file}


def block(kind: str, id: Any = OURS, **more: Any) -> dict[str, Any]:
    return {"type": kind, "source": {"type": "file", "file_id": id}, **more}


def url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@pytest.mark.parametrize(("surface", "part", "name", "data", "made"), [
    ("chat", chat(file_id=OURS), "a.pdf", PDF, chat(filename="a.pdf", file_data=url("application/pdf", PDF))),
    ("chat", chat(file_id=OURS, filename="b.pdf"), "a", PDF,
     chat(filename="b.pdf", file_data=url("application/pdf", PDF))),
    ("chat", chat(file_id=OUTPUT), "o.jsonl", b"{}\n", chat(filename="o.jsonl", file_data=url("text/plain", b"{}\n"))),
    ("responses", {"type": "input_file", "file_id": OURS, "file_data": None}, "a.csv", b"a,b",
     {"type": "input_file", "filename": "a.csv", "file_data": url("text/csv", b"a,b")}),
    ("responses", {"type": "input_image", "file_id": OURS, "image_url": None, "detail": "low"}, "a", PNG,
     {"type": "input_image", "image_url": url("image/png", PNG), "detail": "low"}),
    ("messages", block("document"), "a.pdf", PDF,
     {"type": "document", "title": "a.pdf",
      "source": {"type": "base64", "media_type": "application/pdf", "data": base64.b64encode(PDF).decode()}}),
    ("messages", block("document", title="T", cache_control={"type": "ephemeral"}), "a.md", "Grüezi".encode(),
     {"type": "document", "title": "T", "cache_control": {"type": "ephemeral"},
      "source": {"type": "text", "media_type": "text/plain", "data": "Grüezi"}}),
    ("messages", block("image"), "a.bin", PNG,
     {"type": "image",
      "source": {"type": "base64", "media_type": "image/png", "data": base64.b64encode(PNG).decode()}}),
])  # fmt: skip
def test_a_named_file_becomes_the_inline_form(surface: str, part: Any, name: str, data: bytes, made: Any) -> None:
    assert resolved(surface, part, name, data) == made


@pytest.mark.parametrize(("surface", "turn"), [
    ("messages", {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t",
                                               "content": [block("document")]}]}),
    ("responses", {"type": "function_call_output", "call_id": "c",
                   "output": [{"type": "input_file", "file_id": OURS}]}),
    ("responses", {"type": "computer_call_output", "call_id": "c",
                   "output": {"type": "computer_screenshot", "file_id": OURS}}),
])  # fmt: skip
def test_files_in_results_of_tools_are_found(surface: str, turn: Any) -> None:
    asked = to_raw({FIELDS[surface]: [turn]})
    prompt = find(asked, surface)
    assert prompt is not None and [place.id for place in prompt.places] == [OURS]
    content = content_of("a.png", PNG, surface) if "screenshot" in str(turn) else content_of("a", b"text", surface)
    made = put(asked, surface, prompt, {OURS: content}, 10_000)
    assert OURS.encode() not in bytes(made[FIELDS[surface]])


@pytest.mark.parametrize(("surface", "part"), [
    ("chat", chat(file_id=OTHER)), ("chat", {"type": "file", "file_id": "an id of Mistral's"}),
    ("chat", chat(file_data="data:text/plain;base64,eA==", file_id="")), ("chat", chat(file_url="https://x/y")),
    ("chat", {"type": "text", "text": "x" * 10, "file": [[[[]]]]}),
    ("chat", {"type": "text", "text": f'"file_id": "{OURS}"'}),
    ("responses", {"type": "input_image", "file_id": OTHER}), ("responses", {"type": "input_file", "file_url": "u"}),
    ("responses", {"type": "output_text", "text": "x", "annotations": [{"type": "file_citation", "file_id": OURS}]}),
    ("messages", block("document", "file_011CNha8iCJcU1wXNR6q4V8w")),
    ("messages", {"type": "container_upload", "file_id": "file_011CNha8iCJcU1wXNR6q4V8w"}),
    ("messages", {"type": "tool_use", "id": "t", "name": "read", "input": {"file": {"file_id": OURS}}}),
])  # fmt: skip
def test_other_ids_and_other_things_stay(surface: str, part: Any) -> None:
    """An upstream's own id is passed on, and so are parts without an id."""
    assert find(raw(surface, part), surface) is None


@pytest.mark.parametrize(("surface", "part", "param"), [
    ("chat", {"type": "file"}, "messages[0].content[0].file"),
    ("chat", {"type": "file", "file": None}, "messages[0].content[0].file"),
    ("chat", {"type": "file", "file": "x"}, "messages[0].content[0].file"),
    ("chat", {"type": "file", "file": []}, "messages[0].content[0].file"),
    ("chat", {"type": "file", "file_id": OURS}, "messages[0].content[0].file"),
    ("chat", chat(), "messages[0].content[0].file.file_id"),
    ("chat", chat(file_id=""), "messages[0].content[0].file.file_id"),
    ("chat", chat(file_id=None), "messages[0].content[0].file.file_id"),
    ("chat", chat(file_id=7), "messages[0].content[0].file.file_id"),
    ("chat", chat(file_id=0), "messages[0].content[0].file.file_id"),
    ("chat", chat(file_id={"a": [1]}), "messages[0].content[0].file.file_id"),
    ("chat", chat(file_id=OURS, file_data="x"), "messages[0].content[0].file"),
    ("responses", {"type": "input_file"}, "input[0].content[0].file_id"),
    ("responses", {"type": "input_file", "file_id": 7}, "input[0].content[0].file_id"),
    ("responses", {"type": "input_image", "file_id": ["x"]}, "input[0].content[0].file_id"),
    ("responses", {"type": "input_image", "file_id": OURS, "image_url": "u"}, "input[0].content[0]"),
    ("messages", block("document", None), SOURCE),
    ("messages", block("document", 7), SOURCE),
    ("messages", block("image", ""), SOURCE),
    ("messages", {"type": "container_upload", "file_id": 7}, "messages[0].content[0].file_id"),
    ("messages", {"type": "container_upload", "file_id": OURS}, "messages[0].content[0].file_id"),
    ("messages", {"type": "container_upload"}, "messages[0].content[0].file_id"),
])  # fmt: skip
def test_a_part_that_can_name_no_file_is_refused_with_its_place(surface: str, part: Any, param: str) -> None:
    with pytest.raises(CallerError) as caught:
        find(raw(surface, part), surface)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert param.removesuffix(".file_id") in caught.value.message


@pytest.mark.parametrize(("surface", "part", "data", "said"), [
    ("messages", block("image"), PDF, "no PNG"), ("messages", block("document"), PNG, "'image'"),
    ("messages", block("document"), b"PK\0\3", "neither PDF nor text"),
    ("messages", block("document"), "Grüße".encode("latin-1"), "nor text in UTF-8"),
    ("responses", {"type": "input_image", "file_id": OURS}, b"text", "no PNG"),
])  # fmt: skip
def test_a_file_of_the_wrong_kind_is_refused(surface: str, part: Any, data: bytes, said: str) -> None:
    with pytest.raises(CallerError, match=said) as caught:
        resolved(surface, part, "x.txt", data)
    assert caught.value.status == 400


def test_the_whole_request_has_a_limit() -> None:
    """The limit holds for the encoded request with all contents, and each place that names a file counts."""
    assert resolved("messages", block("document"), "a", b"x" * 500, most=700)
    with pytest.raises(TooLarge):
        resolved("messages", block("document"), "a", b"\n" * 500, most=700)


@pytest.mark.parametrize(("name", "data", "kind"), [
    ("a", PDF, "application/pdf"), ("a.txt", PNG, "image/png"), ("a", b"\xff\xd8\xff\xe0", "image/jpeg"),
    ("a", b"GIF89a", "image/gif"), ("a", b"RIFF\0\0\0\0WEBPVP8 ", "image/webp"), ("a.csv", b"a,b", "text/csv"),
    ("a.json", b"{}", "text/plain"), ("a", b"plain", "text/plain"), ("a.txt", b"\xff\xfe\0", "text/plain"),
    ("a", b"\0\1", "application/octet-stream"), ("data:x/y;z,a.pdf", b"\0", "application/pdf"),
    ("a.wav", b"RIFF\0\0\0\0WAVE", "audio/x-wav"),
])  # fmt: skip
def test_a_files_kind(name: str, data: bytes, kind: str) -> None:
    assert media_type(name, data) == kind


def test_whose_an_id_is() -> None:
    assert is_ours(OURS) and is_ours(OUTPUT)
    assert not any(map(is_ours, (OTHER, OURS + "0", OURS.upper(), "", "file-batch_x-output")))


@pytest.mark.parametrize(("surface", "part"), [
    ("chat", chat(file_id=OURS)), ("responses", {"type": "input_file", "file_id": OURS}),
    ("messages", block("document")),
])  # fmt: skip
def test_estimates_are_of_the_file_itself(surface: str, part: Any) -> None:
    """A text file is estimated as if it were in the prompt; the bound covers every byte of any file."""
    asked = raw(surface, part)
    prompt, text = find(asked, surface), b"word " * 7200
    assert prompt is not None
    made = put(asked, surface, prompt, {OURS: content_of("a.txt", text, surface)}, 100_000)
    before, after = describe(asked, surface), describe(made, surface)
    assert 9_900 < after.input_tokens - before.input_tokens < 10_100
    assert after.input_tokens_bound - before.input_tokens_bound > len(text) - 100
    assert after.text == before.text == ""


def test_what_is_found_is_changed_in_no_other_way() -> None:
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": [chat(file_id=OURS), chat(file_id=OTHER)]}]
    asked = to_raw({"model": "m", "top_p": 1.0, "messages": turns})
    prompt = find(asked, "chat")
    assert prompt is not None
    made = put(asked, "chat", prompt, {OURS: Content("n", "text/plain", "eA==")}, 1000)
    assert json.loads(bytes(made["messages"]))[1]["content"][1] == chat(file_id=OTHER)
    assert {name: value for name, value in made.items() if name != "messages"} == {
        name: value for name, value in asked.items() if name != "messages"}  # fmt: skip
    assert OURS.encode() in bytes(asked["messages"])


def test_what_is_no_json_is_left_to_its_reader() -> None:
    for told in (b'"file_id"', b'{"file_id": 1}', b'[{"content": "file_id', b"[7, null, [], {}]", b'[{"content": 7}]',
                 b'["file_id"' + b",[" * 50_000):  # fmt: skip
        for surface, field in FIELDS.items():
            assert find({field: msgspec.Raw(told + b' "file_id"')}, surface) is None
            assert find({field: msgspec.Raw(told)}, surface) is None
