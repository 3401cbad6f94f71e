"""A scripted upstream's batch endpoint: files and batches in memory, answered by the same scripts as live calls.

A batch is done once it has been asked about `polls` times, so a test decides when; each line follows its model's
script as a call would.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec

Json = dict[str, Any]
Ask = Callable[[str, Json], tuple[int, Json]]
"""A path and a body: the status and body that a live call would get."""
_BOUNDARY = re.compile(r"boundary=\"?([^\";]+)")
encode, decode = msgspec.json.encode, msgspec.json.decode


class Batches:
    """One upstream's files and batches."""

    def __init__(self, ask: Ask, polls: int = 1) -> None:
        self.polls = polls
        """Questions about a batch before it is done."""
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, Json] = {}
        self._ask = ask
        self._asked: dict[str, int] = {}

    def serves(self, path: str) -> bool:
        bare = path.partition("?")[0]
        return bare.endswith(("/files", "/batches")) or "/files/" in bare or "/batches/" in bare

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Json | bytes]:
        """Status, and a JSON body or a file's bytes."""
        parts = path.partition("?")[0].strip("/").split("/")
        kind = "files" if "files" in parts else "batches"
        rest = parts[parts.index(kind) + 1 :]
        if kind == "files":
            return self._files(method, rest, headers, body)
        if method == "POST" and not rest:
            return self._make(decode(body))
        if not rest:
            return 200, {"object": "list", "data": list(self.batches.values())[::-1], "has_more": False}
        batch = self.batches.get(rest[0])
        if batch is None:
            return 404, _error(f"no batch {rest[0]}")
        if rest[1:] == ["cancel"]:
            batch["status"] = "cancelled" if batch["status"] == "in_progress" else batch["status"]
        elif batch["status"] == "in_progress":
            self._asked[batch["id"]] = self._asked.get(batch["id"], 0) + 1
            if self._asked[batch["id"]] >= self.polls:
                self._finish(batch)
        return 200, batch

    def _files(self, method: str, rest: list[str], headers: dict[str, str], body: bytes) -> tuple[int, Json | bytes]:
        if method == "POST":
            return 200, _file(self._put(_upload(headers.get("content-type", ""), body)))
        if not rest or rest[0] not in self.files:
            return 404, _error("no such file")
        return 200, self.files[rest[0]] if rest[1:] == ["content"] else _file(rest[0])

    def _put(self, content: bytes) -> str:
        id = f"file-scripted-{len(self.files)}"
        self.files[id] = content
        return id

    def _make(self, asks: Json) -> tuple[int, Json]:
        if asks.get("input_file_id") not in self.files:
            return 400, _error("no such input file")
        id = f"batch_scripted_{len(self.batches)}"
        self.batches[id] = {
            "id": id, "object": "batch", "endpoint": asks["endpoint"], "status": "in_progress",
            "input_file_id": asks["input_file_id"], "completion_window": asks["completion_window"],
            "metadata": asks.get("metadata"), "output_file_id": None, "error_file_id": None,
        }  # fmt: skip
        return 200, self.batches[id]

    def _finish(self, batch: Json) -> None:
        good: list[bytes] = []
        bad: list[bytes] = []
        for line in self.files[batch["input_file_id"]].splitlines():
            request = decode(line)
            status, body = self._ask(request["url"], request["body"])
            response = {"status_code": status, "request_id": f"req_{request['custom_id']}", "body": body}
            told = {"id": f"batch_req_{request['custom_id']}", "custom_id": request["custom_id"],
                    "response": response, "error": None}  # fmt: skip
            (good if status == 200 else bad).append(encode(told) + b"\n")
        batch["output_file_id"] = self._put(b"".join(good)) if good else None
        batch["error_file_id"] = self._put(b"".join(bad)) if bad else None
        batch["status"] = "completed"


def _upload(content_type: str, body: bytes) -> bytes:
    """The file's bytes out of a multipart form."""
    found = _BOUNDARY.search(content_type)
    fence = b"--" + (found[1] if found else "").encode()
    for part in body.split(fence):
        head, _, data = part.partition(b"\r\n\r\n")
        if b"filename=" in head:
            return data.removesuffix(b"\r\n")
    return b""


def _file(id: str) -> Json:
    return {"id": id, "object": "file", "purpose": "batch", "filename": f"{id}.jsonl", "bytes": 0, "created_at": 0}


def _error(message: str) -> Json:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}
