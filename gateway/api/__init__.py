"""The table of the data plane's paths, but for the surfaces that models answer, which are in gateway/asgi.py."""

from __future__ import annotations

import re

from gateway.api import (
    batches,
    cache,
    conversations,
    decisions,
    files,
    health,
    message_batches,
    messages,
    models,
    openapi,
    responses,
)
from gateway.asgi import Handler

_TABLE: tuple[tuple[str, str, Handler], ...] = (
    ("GET", r"/v1/models", models.list_models),
    ("GET", r"/v1/models/(.+)", models.get_model),
    ("POST", r"/v1/messages/count_tokens", messages.count_tokens),
    ("POST", r"/v1/messages/batches", message_batches.create_message_batch),
    ("GET", r"/v1/messages/batches", message_batches.list_message_batches),
    ("GET", r"/v1/messages/batches/([^/]+)", message_batches.get_message_batch),
    ("DELETE", r"/v1/messages/batches/([^/]+)", message_batches.delete_message_batch),
    ("POST", r"/v1/messages/batches/([^/]+)/cancel", message_batches.cancel_message_batch),
    ("GET", r"/v1/messages/batches/([^/]+)/results", message_batches.get_message_batch_results),
    ("POST", r"/v1/responses/input_tokens", responses.count_input_tokens),
    ("GET", r"/v1/responses/([^/]+)", responses.get_response),
    ("DELETE", r"/v1/responses/([^/]+)", responses.delete_response),
    ("GET", r"/v1/responses/([^/]+)/input_items", responses.list_input_items),
    ("POST", r"/v1/responses/([^/]+)/cancel", responses.cancel_response),
    ("POST", r"/v1/conversations", conversations.create_conversation),
    ("GET", r"/v1/conversations/([^/]+)", conversations.get_conversation),
    ("POST", r"/v1/conversations/([^/]+)", conversations.update_conversation),
    ("DELETE", r"/v1/conversations/([^/]+)", conversations.delete_conversation),
    ("GET", r"/v1/conversations/([^/]+)/items", conversations.list_items),
    ("POST", r"/v1/conversations/([^/]+)/items", conversations.create_items),
    ("GET", r"/v1/conversations/([^/]+)/items/([^/]+)", conversations.get_item),
    ("DELETE", r"/v1/conversations/([^/]+)/items/([^/]+)", conversations.delete_item),
    ("GET", r"/v1/decisions/([^/]+)", decisions.get_decision),
    ("POST", r"/v1/feedback", decisions.post_feedback),
    ("POST", r"/v1/files", files.create_file),
    ("GET", r"/v1/files", files.list_files),
    ("GET", r"/v1/files/([^/]+)", files.get_file),
    ("GET", r"/v1/files/([^/]+)/content", files.get_content),
    ("DELETE", r"/v1/files/([^/]+)", files.delete_file),
    ("POST", r"/v1/batches", batches.create_batch),
    ("GET", r"/v1/batches", batches.list_batches),
    ("GET", r"/v1/batches/([^/]+)", batches.get_batch),
    ("POST", r"/v1/batches/([^/]+)/cancel", batches.cancel_batch),
    ("DELETE", r"/v1/cache/entries/([^/]+)", cache.delete_entry),
    ("DELETE", r"/v1/cache/entries", cache.delete_tenant),
    ("GET", r"/healthz|/health|/health/liveliness|/health/liveness", health.healthz),
    ("GET", r"/readyz|/health/readiness", health.readyz),
    ("GET", r"/metrics", health.metrics),
    ("GET", r"/openapi\.json", openapi.get_openapi),
)

HANDLERS = [(method, re.compile(pattern), handler) for method, pattern, handler in _TABLE]
