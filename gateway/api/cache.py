"""DELETE /v1/cache/entries: deletes one entry, or all of a tenant, before the next request is answered."""

from __future__ import annotations

import msgspec

from gateway.asgi import Answer, Request
from gateway.errors import NotFound
from gateway.reply import JSON


async def delete_entry(request: Request, id: str) -> Answer:
    """Delete a cached answer."""
    caller = request.caller()
    if not await request.services.cache.delete(id, tenant=None if caller.admin else caller.tenant):
        raise NotFound(f"No cache entry has the id '{id}'.")
    return 200, [JSON], msgspec.json.encode({"id": id, "deleted": True})


async def delete_tenant(request: Request, _: str) -> Answer:
    """Delete all cached answers of the caller's tenant; with the master key, of the tenant named by `tenant`."""
    caller = request.caller()
    tenant = request.query.get("tenant", [caller.tenant])[0] if caller.admin else caller.tenant
    deleted = await request.services.cache.delete_tenant(tenant)
    return 200 if deleted else 503, [JSON], msgspec.json.encode({"tenant": tenant, "deleted": deleted})
