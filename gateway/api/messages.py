"""POST /v1/messages/count_tokens: the provider's count where it has the endpoint, else an estimate."""

from __future__ import annotations

import msgspec

from gateway.asgi import Answer, Request
from gateway.attempt import readable
from gateway.call import KNOB_FIELD, read_model, read_raw
from gateway.errors import CallerError, UnknownModel, UpstreamError
from gateway.file_inputs import with_files
from gateway.reply import JSON
from gateway.wire.errors import classify
from gateway.wire.request import Raw, encode, estimate_tokens, signed

TIMEOUT_S = 30.0
MAX_ANSWER_BYTES = 64 * 1024


async def count_tokens(request: Request, _: str) -> Answer:
    """Count the tokens of a request to /v1/messages. A route counts with its default model."""
    caller, services = request.caller(), request.services
    raw = read_raw(request.body, request.arrival.headers)
    model = read_model(raw)
    if not model:
        raise CallerError("model: Field required", param="model")
    if not caller.may_use(model):
        raise UnknownModel(f"The model '{model}' does not exist or this key may not use it.", param="model")
    route = services.book.find(model)
    raw = await with_files(services, raw, "messages", caller.tenant)
    estimate = estimate_tokens(raw, "messages", max_messages=services.config.server.max_messages)
    for deployment in services.fleet.deployments(route.default_model):
        provider = services.driver.sender.providers[deployment.provider]
        if "count_tokens" in provider.dialects:
            return 200, [JSON], await _count_at_provider(request, raw, deployment.upstream_raw, deployment.id)
    return 200, [JSON], msgspec.json.encode({"input_tokens": estimate})


async def _count_at_provider(request: Request, raw: Raw, model: msgspec.Raw, deployment_id: str) -> bytes:
    services = request.services
    deployment = next(one for one in services.fleet.all() if one.id == deployment_id)
    provider = services.driver.sender.providers[deployment.provider]
    head = provider.head(deployment.config, "count_tokens", False, request.arrival.headers)
    raw.pop(KNOB_FIELD, None)
    fields = {**raw, "model": model, "messages": signed(raw["messages"])}
    response = await provider.pool.send(head, encode(fields), timeout_s=TIMEOUT_S)
    body = await response.read(MAX_ANSWER_BYTES, timeout_s=TIMEOUT_S)
    if response.status >= 300:
        error = classify(response.status, body, readable(response.headers))
        provider.hide_secrets(error)
        raise error
    if not body.startswith(b"{"):
        raise UpstreamError("bad_response", "the provider's answer to count_tokens isn't a JSON object")
    return body
