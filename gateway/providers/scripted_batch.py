"""A scripted upstream's batch endpoint: files and batches in memory.

A batch completes when its status has been requested `polls` times, so a test decides when. Each line follows its
model's script as a live call would.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec

Json = dict[str, Any]
AnswerLine = Callable[[str, Json], tuple[int, Json]]
"""Takes the path and body of a call, and returns the status and body of its answer."""
_BOUNDARY = re.compile(r"boundary=\"?([^\";]+)")
encode, decode = msgspec.json.encode, msgspec.json.decode


class Batches:
    """The files and batches of one upstream."""

    def __init__(self, answer_line: AnswerLine, polls: int = 1) -> None:
        self.polls = polls
        """Status requests after which a batch is completed."""
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, Json] = {}
        self._answer_line = answer_line
        self._polled: dict[str, int] = {}

    def serves(self, path: str) -> bool:
        bare = path.partition("?")[0]
        return bare.endswith(("/files", "/batches")) or "/files/" in bare or "/batches/" in bare

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Json | bytes]:
        """The answer to a request: its status, and a JSON body or a file's bytes."""
        parts = path.partition("?")[0].strip("/").split("/")
        kind = "files" if "files" in parts else "batches"
        rest = parts[parts.index(kind) + 1 :]
        if kind == "files":
            return self._files(method, rest, headers, body)
        if method == "POST" and not rest:
            return self._create(decode(body))
        if not rest:
            return 200, {"object": "list", "data": list(self.batches.values())[::-1], "has_more": False}
        batch = self.batches.get(rest[0])
        if batch is None:
            return 404, _error(f"no batch {rest[0]}")
        if rest[1:] == ["cancel"]:
            batch["status"] = "cancelled" if batch["status"] == "in_progress" else batch["status"]
        elif batch["status"] == "in_progress":
            self._polled[batch["id"]] = self._polled.get(batch["id"], 0) + 1
            if self._polled[batch["id"]] >= self.polls:
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

    def _create(self, fields: Json) -> tuple[int, Json]:
        if fields.get("input_file_id") not in self.files:
            return 400, _error("no such input file")
        id = f"batch_scripted_{len(self.batches)}"
        self.batches[id] = {
            "id": id, "object": "batch", "endpoint": fields["endpoint"], "status": "in_progress",
            "input_file_id": fields["input_file_id"], "completion_window": fields["completion_window"],
            "metadata": fields.get("metadata"), "output_file_id": None, "error_file_id": None,
        }  # fmt: skip
        return 200, self.batches[id]

    def _finish(self, batch: Json) -> None:
        succeeded: list[bytes] = []
        failed: list[bytes] = []
        for line in self.files[batch["input_file_id"]].splitlines():
            request = decode(line)
            status, body = self._answer_line(request["url"], request["body"])
            response = {"status_code": status, "request_id": f"req_{request['custom_id']}", "body": body}
            answer = {"id": f"batch_req_{request['custom_id']}", "custom_id": request["custom_id"],
                    "response": response, "error": None}  # fmt: skip
            (succeeded if status == 200 else failed).append(encode(answer) + b"\n")
        batch["output_file_id"] = self._put(b"".join(succeeded)) if succeeded else None
        batch["error_file_id"] = self._put(b"".join(failed)) if failed else None
        batch["status"] = "completed"


def _upload(content_type: str, body: bytes) -> bytes:
    """The bytes of the file in a multipart form; empty where there is none."""
    boundary = _BOUNDARY.search(content_type)
    fence = b"--" + (boundary[1] if boundary else "").encode()
    for part in body.split(fence):
        head, _, data = part.partition(b"\r\n\r\n")
        if b"filename=" in head:
            return data.removesuffix(b"\r\n")
    return b""


def _file(id: str) -> Json:
    return {"id": id, "object": "file", "purpose": "batch", "filename": f"{id}.jsonl", "bytes": 0, "created_at": 0}


def _error(message: str) -> Json:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}
