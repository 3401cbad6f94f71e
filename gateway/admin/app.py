"""The admin application: the admin API and the dashboard's pages. FastAPI, off the hot path; every response is typed.

One module of this package serves one page: it holds the functions that answer and the HTTP paths that call them. The
dashboard calls the same functions directly.
"""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa
from fastapi import FastAPI, Request, Response
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from gateway.admin import (
    accounts,
    audit,
    batch,
    cache,
    certificates,
    counters,
    decisions,
    health,
    keys,
    knobs,
    labels,
    learning,
    models,
    overview,
    plans,
    results,
    tenants,
)
from gateway.admin.bounds import Bounds
from gateway.admin.changes import Conflict, DatabaseAway
from gateway.admin.guard import documented
from gateway.admin.services import AdminServices
from gateway.dashboard import mount
from gateway.errors import CallerError, HeadgateError, NotFound

API_MODULES = (
    overview, knobs, decisions, learning, certificates, cache, models, keys, tenants, labels, accounts, audit, counters,
    batch, plans, results,
)  # fmt: skip
Render = Callable[[Request, HeadgateError], Response | None]


def make_admin(services: AdminServices) -> FastAPI:
    """Build the application that works with these services."""
    app = FastAPI(
        title="Headgate admin", docs_url=None, openapi_url="/admin/openapi.json", redoc_url=None
    )
    app.add_middleware(Bounds, max_upload_bytes=2 * services.config.server.max_body_bytes)  # twice: quotes in JSON
    app.state.services = services
    app.state.render_error = None
    app.add_exception_handler(HeadgateError, _answer_error)
    app.add_exception_handler(sa.exc.SQLAlchemyError, _answer_database_away)
    for fault in (OverflowError, UnicodeEncodeError, sa.exc.DataError):
        app.add_exception_handler(fault, _answer_unstorable)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(ClientDisconnect, _ignore_disconnect)
    app.add_exception_handler(HTTPException, _answer_refused)
    app.include_router(health.router)
    app.include_router(accounts.sessions_api)
    for module in API_MODULES:
        app.include_router(module.router, dependencies=documented)
    mount(app)
    return app


def _answer_error(request: Request, fault: Exception) -> Response:
    """Answer with an error: as a page where a page was requested, else as JSON."""
    assert isinstance(fault, HeadgateError)
    render: Render | None = request.app.state.render_error
    if render is not None and _is_page(request):
        page = render(request, fault)
        if page is not None:
            return page
    error = {"message": fault.message, "type": fault.kind, "code": fault.code, "param": fault.param}
    current = fault.current.model_dump() if isinstance(fault, Conflict) and fault.current is not None else None
    body = {"error": error} if current is None else {"error": error, "current": current}
    headers = {"retry-after": f"{max(1, round(fault.retry_after_s))}"} if fault.retry_after_s else None
    return JSONResponse(body, fault.status, headers)


def _answer_database_away(request: Request, _fault: Exception) -> Response:
    return _answer_error(request, DatabaseAway("the database is away, so figures may be missing"))


def _answer_unstorable(request: Request, _fault: Exception) -> Response:
    """The database can't store a value: the number is too large, or the text has lone surrogates or NUL characters."""
    return _answer_error(request, CallerError("a value is out of range or can't be stored", status=422, code="unsound"))


def _answer_invalid(request: Request, fault: Exception) -> Response:
    """The request doesn't match its schema: name the first faulty field and what is wrong with it."""
    assert isinstance(fault, RequestValidationError)
    first = fault.errors()[0]
    if first["loc"] == ("body",) and "json" not in request.headers.get("content-type", "json"):
        return _answer_error(request, CallerError("send JSON with content-type: application/json", status=415))
    field = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))
    message = f"{field}: {first['msg']}" if field else str(first["msg"])
    return _answer_error(request, CallerError(message, status=422, code="unsound", param=field or None))


async def _ignore_disconnect(_request: Request, _fault: Exception) -> Response:
    """The client disconnected while it sent the body; nobody reads this response, and no error is logged."""
    return Response(status_code=400)


async def _answer_refused(request: Request, fault: Exception) -> Response:
    """The framework refused the request: an unknown path, a wrong method, or a body that can't be read."""
    assert isinstance(fault, HTTPException)
    if _is_page(request) and fault.status_code == 404:
        return _answer_error(request, NotFound("there is no such page"))
    if _is_page(request):
        return await http_exception_handler(request, fault)
    code = {404: "unknown_url", 405: "method_not_allowed"}.get(fault.status_code, "unsound")
    answer = _answer_error(request, CallerError(str(fault.detail), status=fault.status_code, code=code))
    answer.headers.update(fault.headers or {})
    return answer


def _is_page(request: Request) -> bool:
    path = request.url.path
    return not path.startswith("/admin") and path not in ("/healthz", "/readyz", "/metrics")
