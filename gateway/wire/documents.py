"""Parts of a prompt whose bytes don't bound its tokens: what a page of a PDF holds, only its provider knows."""

from __future__ import annotations

from base64 import b64decode

from gateway.wire.file_parts import is_ours

FILES = frozenset({"document", "file", "input_file", "container_upload"})
DOCUMENTS = FILES | {"video", "video_url", "input_video", "audio_url"}
"""Parts that may be such."""
UNKNOWN_CONTEXT = 200_000
"""Tokens that a prompt of such parts is taken to have at most where the model's configuration names no limit."""
_HEAD_CHARS = 1368
"""In which a PDF says that it is one: 1,024 bytes, in base64."""


def holds_unbounded(value: object) -> bool:
    """Whether there is a part in it whose bytes don't bound its tokens."""
    if isinstance(value, list):
        return any(map(holds_unbounded, value))
    if not isinstance(value, dict):
        return False
    kind, audio = value.get("type"), value.get("audio")
    if isinstance(kind, str) and kind in DOCUMENTS and not _is_bounded(value):
        return True
    return (isinstance(audio, dict) and "id" in audio) or any(map(holds_unbounded, value.values()))


def _is_bounded(part: dict[str, object]) -> bool:
    """A text; or a file of ours, which is described again once it is in its place, and which no upstream knows."""
    source, file = part.get("source"), part.get("file")
    told = source if isinstance(source, dict) else file if isinstance(file, dict) else part
    if told is source and source.get("type") in ("text", "content"):
        return True
    id, data = told.get("file_id"), told.get("file_data")
    if told.get("file_url") or told.get("url"):
        return False
    return is_ours(id) and not data if isinstance(id, str) else _is_text(data)


def _is_text(data: object) -> bool:
    """Of a data URL: it says that it is text, and begins as no PDF and no archive, whatever it says."""
    if not (isinstance(data, str) and data.startswith("data:text/")):
        return False
    head = data.partition(",")[2][:_HEAD_CHARS]
    try:
        begins = b64decode(head + "=" * (-len(head) % 4))
    except ValueError:
        return False
    return b"%PDF" not in begins and not begins.startswith(b"PK")
