"""GET /openapi.json: the data plane's description in OpenAPI.

The paths come from the table of handlers, so none can be missing, and the handlers' docstrings are its texts. Bodies
are described as far as the gateway reads them; fields that aren't listed are forwarded to the provider unchanged.
"""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from gateway.asgi import Answer, Handler, Request
from gateway.call import SURFACES
from gateway.reply import JSON
from gateway.wire.pass_through import PASSED_PATHS

Schema = dict[str, Any]

_CAUGHT = re.compile(r"\((?:\[\^/\]|\.)\+\)")
_TEXT: Schema = {"type": "string"}
_NUMBER_0_1: Schema = {"type": "number", "minimum": 0, "maximum": 1}
_COUNT: Schema = {"type": "integer", "minimum": 1}
_TURNS: Schema = {"type": "array", "minItems": 1, "items": {"$ref": "#/components/schemas/Turn"}}
_CONVERSED: Schema = {
    "input": {
        "anyOf": [_TEXT, _TURNS, {"type": "null"}], "description": "may be left out if there are turns before it",
    },
    "instructions": {"type": ["string", "null"]},
    "previous_response_id": {"type": ["string", "null"]},
    "conversation": {"anyOf": [_TEXT, {"type": "object"}, {"type": "null"}]},
}  # fmt: skip
_COMMON: Schema = {
    "model": {"type": "string", "description": "a route, or a model to pin"},
    "stream": {"type": "boolean", "default": False},
    "temperature": {"type": "number"},
    "headgate": {"$ref": "#/components/schemas/Knobs"},
}
_BODIES: dict[str, Schema] = {
    "chat": {
        "properties": {
            **_COMMON, "messages": _TURNS, "max_tokens": _COUNT, "max_completion_tokens": _COUNT,
            "n": {"type": "integer", "minimum": 1, "maximum": 128}, "tools": {"type": "array"},
            "stream_options": {"type": "object"}, "response_format": {"type": "object"},
        },
        "required": ["model", "messages"],
    },
    "completions": {
        "properties": {**_COMMON, "prompt": {"anyOf": [_TEXT, {"type": "array"}]}, "max_tokens": _COUNT},
        "required": ["model", "prompt"],
    },
    "embeddings": {
        "properties": {**_COMMON, "input": {"anyOf": [_TEXT, {"type": "array"}]}},
        "required": ["model", "input"],
    },
    "responses": {
        "properties": {
            **_COMMON, **_CONVERSED, "max_output_tokens": _COUNT,
            "store": {"type": ["boolean", "null"]}, "background": {"type": ["boolean", "null"]},
            "tools": {"type": "array"},
        },
        "required": ["model"],
    },
    "messages": {
        "properties": {
            **_COMMON, "messages": _TURNS, "max_tokens": _COUNT, "system": {"anyOf": [_TEXT, {"type": "array"}]},
            "tools": {"type": "array"},
        },
        "required": ["model", "messages", "max_tokens"],
    },
}  # fmt: skip
_FILE: Schema = {"type": "string", "format": "binary"}
_MODEL: Schema = {"model": {"type": "string", "description": "a model, or a route whose models are tried in turn"}}
_PICTURES: Schema = {"n": {"type": "integer", "minimum": 1, "maximum": 128}, "stream": {"type": "boolean"}}
_PASSED: dict[str, Schema] = {
    "compact": {"properties": {**_MODEL, **_CONVERSED}, "required": ["model"]},
    "moderations": {"properties": {**_MODEL, "input": {"anyOf": [_TEXT, {"type": "array"}]}}, "required": ["input"]},
    "images": {"properties": {**_MODEL, **_PICTURES, "prompt": _TEXT}, "required": ["model", "prompt"]},
    "image_edits": {
        "properties": {**_MODEL, **_PICTURES, "prompt": _TEXT, "image": _FILE},
        "required": ["model", "prompt", "image"],
    },
    "image_variations": {"properties": {**_MODEL, **_PICTURES, "image": _FILE}, "required": ["model", "image"]},
    "speech": {"properties": {**_MODEL, "input": _TEXT, "voice": _TEXT}, "required": ["model", "input"]},
    "transcriptions": {
        "properties": {**_MODEL, "file": _FILE, "prompt": _TEXT, "stream": {"type": "boolean"}},
        "required": ["model", "file"],
    },
    "translations": {"properties": {**_MODEL, "file": _FILE, "prompt": _TEXT}, "required": ["model", "file"]},
    "rerank": {
        "properties": {**_MODEL, "query": _TEXT, "documents": {"type": "array", "minItems": 1}},
        "required": ["model", "query", "documents"],
    },
}  # fmt: skip
_ANSWERS = {
    "chat": "Answer a chat.",
    "completions": "Complete a text.",
    "embeddings": "Embed texts.",
    "responses": "Answer a request of the Responses API.",
    "messages": "Answer a request of Anthropic's Messages API.",
    "compact": "Compact a conversation of the Responses API.",
    "moderations": "Moderate texts or images.",
    "images": "Make images.",
    "image_edits": "Edit an image.",
    "image_variations": "Make variations of an image.",
    "speech": "Speak a text.",
    "transcriptions": "Transcribe a recording.",
    "translations": "Translate a recording into English text.",
    "rerank": "Order documents by how well they fit a query.",
}
_FEEDBACK: Schema = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "decision_id": _TEXT, "response_id": _TEXT, "request_id": _TEXT,
        "score": {"anyOf": [_NUMBER_0_1, {"type": "null"}]},
        "label": {"type": "string", "maxLength": 200}, "comment": {"type": "string", "maxLength": 4000},
        "source": _TEXT,
    },
}  # fmt: skip
_METADATA: Schema = {
    "type": ["object", "null"], "maxProperties": 16, "additionalProperties": {"type": "string", "maxLength": 512},
}  # fmt: skip
_ADDED: Schema = {"type": "array", "maxItems": 20, "items": {"type": "object"}}
_REQUESTS: Schema = {
    "type": "array", "minItems": 1, "maxItems": 100_000,
    "items": {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "custom_id": {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,64}$"},
            "params": {"type": "object", **_BODIES["messages"], "description": "as for /v1/messages, without `stream`"},
        },
        "required": ["custom_id", "params"],
    },
}  # fmt: skip
_BATCH_KNOBS: Schema = {
    "type": "object", "additionalProperties": False,
    "properties": {"budget_usd": {"type": ["number", "null"], "minimum": 0}, "min_quality": _NUMBER_0_1},
}  # fmt: skip
_OTHERS: dict[tuple[str, str], Schema] = {
    ("POST", "/v1/feedback"): _FEEDBACK,
    ("POST", "/v1/conversations"): {
        "type": "object", "properties": {"items": {**_ADDED, "type": ["array", "null"]}, "metadata": _METADATA},
    },
    ("POST", "/v1/conversations/{id}"): {
        "type": "object", "properties": {"metadata": _METADATA}, "required": ["metadata"],
    },
    ("POST", "/v1/conversations/{id}/items"): {
        "type": "object", "properties": {"items": _ADDED}, "required": ["items"],
    },
    ("POST", "/v1/files"): {
        "type": "object",
        "properties": {
            "file": _FILE, "purpose": {"type": "string", "description": "required, except from Anthropic's clients"},
            "expires_after[seconds]": {"type": "integer", "minimum": 1, "maximum": 2592000},
            "expires_in_seconds": {
                "type": "integer", "minimum": 3600, "maximum": 7776000,
                "description": "what Anthropic's clients send in place of `expires_after`",
            },
        },
        "required": ["file"],
    },
    ("POST", "/v1/messages/batches"): {
        "type": "object", "properties": {"requests": _REQUESTS, "headgate": _BATCH_KNOBS}, "required": ["requests"],
        "additionalProperties": False,
    },
    ("POST", "/v1/messages/count_tokens"): {
        "type": "object", "properties": {"model": _TEXT, "messages": _TURNS}, "required": ["model", "messages"],
    },
    ("POST", "/v1/responses/input_tokens"): {
        "type": "object", "properties": {"model": _TEXT, **_CONVERSED}, "required": ["model"],
    },
}  # fmt: skip
_QUERIES: dict[tuple[str, str], Schema] = {
    ("GET", "/v1/files"): {
        "purpose": _TEXT, "order": {"type": "string", "enum": ["asc", "desc"]}, "limit": _COUNT, "after": _TEXT,
        "after_id": _TEXT, "before_id": _TEXT, "page": _TEXT, "ids[]": {"type": "array", "items": _TEXT},
    },
}  # fmt: skip
_COMPONENTS: dict[str, Schema] = {
    "Turn": {
        "type": "object",
        "properties": {
            "role": {"type": "string"},
            "content": {
                "anyOf": [_TEXT, {"type": "array", "items": {"$ref": "#/components/schemas/Part"}}, {"type": "null"}],
            },
        },
        "required": ["role", "content"],
    },
    "Part": {
        "type": "object",
        "description": (
            "A text, an image, a file, or another part of the surface's API. If it names a file by the `file_id` "
            "of an upload to /v1/files, the model gets the file's content, whichever provider answers."
        ),
        "properties": {"type": _TEXT},
    },
    "Knobs": {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "cost_weight": _NUMBER_0_1, "min_quality": _NUMBER_0_1,
            "max_cost_usd": {"type": "number", "minimum": 0}, "max_latency_s": {"type": "number", "minimum": 0},
            "models": {"type": "array", "items": _TEXT}, "cache": _TEXT, "route": _TEXT,
        },
    },
    "Error": {
        "type": "object",
        "properties": {"error": {"type": "object", "properties": {"type": _TEXT, "message": _TEXT}}},
        "required": ["error"],
    },
}  # fmt: skip


async def get_openapi(request: Request, _: str) -> Answer:
    """Show this document. It needs no key, since it reveals nothing about this installation."""
    return 200, [JSON], document()


@functools.cache
def document() -> bytes:
    """OpenAPI 3.1 as JSON."""
    from gateway.api import HANDLERS  # the table holds this module's own handler

    paths: dict[str, dict[str, Schema]] = {}
    for path, surface in SURFACES.items():
        paths[path] = {"post": answering(path, surface)}
    for path, surface in PASSED_PATHS.items():
        paths[path] = {"post": passing(path, surface)}
    for method, pattern, handler in HANDLERS:
        for path in paths_of(pattern.pattern):
            paths.setdefault(path, {})[method.lower()] = operation(method, path, handler)
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {"title": "Headgate", "version": importlib.metadata.version("headgate")},
            "paths": paths,
            "components": {
                "schemas": _COMPONENTS,
                "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            },
            "security": [{"key": []}, {}],
        }
    )


def answering(path: str, surface: str) -> Schema:
    """The operation of a surface that models answer."""
    body = {"type": "object", **_BODIES[surface]}
    answer = {"200": {"description": "the answer, whole or as events", "content": _json({"type": "object"})}}
    answer["200"]["content"]["text/event-stream"] = {"schema": _TEXT}  # type: ignore[index]
    return {
        "summary": _ANSWERS[surface],
        "operationId": _id("POST", path),
        "requestBody": {"required": True, "content": _json(body)},
        "responses": {**answer, **_errors()},
    }


def passing(path: str, surface: str) -> Schema:
    """The operation of a surface whose requests and answers are passed through."""
    body = {"type": "object", **_PASSED[surface]}
    return {
        "summary": _ANSWERS[surface],
        "description": "The request and the answer are passed through unchanged, except for the model's name.",
        "operationId": _id("POST", path),
        "requestBody": _body(body),
        "responses": {"200": {"description": "JSON, text, sound or events"}, **_errors()},
    }


def operation(method: str, path: str, handler: Handler) -> Schema:
    """The operation of any other path, described by its handler's docstring."""
    summary, _, more = (inspect.getdoc(handler) or "").partition("\n\n")
    described: Schema = {
        "summary": summary,
        **({"description": more.replace("\n", " ")} if more else {}),
        "operationId": _id(method, path),
        "responses": {"2XX": {"description": "done"}, **_errors()},
    }
    query = _QUERIES.get((method, path), {})
    parameters = [
        *({"name": name, "in": "path", "required": True, "schema": _TEXT} for name in re.findall(r"{(\w+)}", path)),
        *({"name": name, "in": "query", "schema": schema} for name, schema in query.items()),
    ]
    if parameters:
        described["parameters"] = parameters
    if body := _OTHERS.get((method, path)):
        described["requestBody"] = _body(body)
    return described


def paths_of(pattern: str) -> Iterator[str]:
    """The paths of a handler's pattern, with `{id}` for its first group and `{item_id}` for its second."""
    for one in pattern.split("|"):
        yield _CAUGHT.sub("{item_id}", _CAUGHT.sub("{id}", one, count=1)).replace("\\", "")


def _errors() -> dict[str, Schema]:
    error = {"content": _json({"$ref": "#/components/schemas/Error"})}
    return {
        "4XX": {"description": "what is wrong with the request, or why the caller may not send it", **error},
        "5XX": {"description": "a provider failed, or the gateway can't answer now", **error},
    }


def _body(schema: Schema) -> Schema:
    """A request body of this schema: a form if it has a file, else JSON."""
    kind = "multipart/form-data" if _FILE in schema["properties"].values() else "application/json"
    return {"required": True, "content": {kind: {"schema": schema}}}


def _json(schema: Schema) -> dict[str, Schema]:
    return {"application/json": {"schema": schema}}


def _id(method: str, path: str) -> str:
    return method.lower() + re.sub(r"\W+", "_", path).rstrip("_")
