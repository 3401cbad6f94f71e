"""Parts of a prompt whose bytes don't bound its tokens: only the provider knows how many a page of a PDF has."""

from __future__ import annotations

from base64 import b64decode

from gateway.wire.file_parts import is_ours

FILE_TYPES = frozenset({"document", "file", "input_file", "container_upload"})
DOCUMENT_TYPES = FILE_TYPES | {"video", "video_url", "input_video", "audio_url"}
"""Types of parts that may be unbounded."""
UNKNOWN_CONTEXT = 200_000
"""Most tokens to assume for a prompt with an unbounded part where the model's configuration names no context."""
_HEAD_CHARS = 1368
"""A PDF's signature is in its first 1,024 bytes; this is their length in base64."""


def holds_unbounded(value: object) -> bool:
    """Whether a JSON value holds, at any depth, a part whose bytes don't bound its tokens."""
    if isinstance(value, list):
        return any(map(holds_unbounded, value))
    if not isinstance(value, dict):
        return False
    kind, audio = value.get("type"), value.get("audio")
    if isinstance(kind, str) and kind in DOCUMENT_TYPES and not _is_bounded(value):
        return True
    return (isinstance(audio, dict) and "id" in audio) or any(map(holds_unbounded, value.values()))


def _is_bounded(part: dict[str, object]) -> bool:
    """Whether the part is text, or names a file of this gateway, which is described again once its content is in
    place.
    """
    source, file = part.get("source"), part.get("file")
    holder = source if isinstance(source, dict) else file if isinstance(file, dict) else part
    if holder is source and source.get("type") in ("text", "content"):
        return True
    id, data = holder.get("file_id"), holder.get("file_data")
    if holder.get("file_url") or holder.get("url"):
        return False
    return is_ours(id) and not data if isinstance(id, str) else _is_text(data)


def _is_text(data: object) -> bool:
    """Whether it is a data URL of a text type whose content isn't a PDF or an archive."""
    if not (isinstance(data, str) and data.startswith("data:text/")):
        return False
    head = data.partition(",")[2][:_HEAD_CHARS]
    try:
        begins = b64decode(head + "=" * (-len(head) % 4))
    except ValueError:
        return False
    return b"%PDF" not in begins and not begins.startswith(b"PK")
