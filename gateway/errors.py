"""Everything that can go wrong, split by who is at fault.

    HeadgateError
    +-- CallerError       the request; 4xx, never retried
    +-- PolicyError       the caller's key, budget or limits
    +-- UpstreamError     a provider; another may answer
    +-- Draining          this worker is ending or full; the client should try again
    +-- ConfigError       the operator's file; refused at start

Foreign exceptions are mapped once, at the seam they come through.
"""

from __future__ import annotations

from typing import Self

FAILURES = frozenset(
    {
        "connect",          # no connection could be made
        "loading",          # a model server of this machine that is still starting
        "out_of_files",     # this process has no file descriptor left for a connection
        "timeout",          # no answer in time
        "reset",            # the connection broke before the answer was whole
        "rate_limited",     # 429
        "overloaded",       # 503, 529
        "server_error",     # other 5xx
        "unauthorized",     # 401, 402, 403: the gateway's credential or account, not the client's
        "not_found",        # 404: the upstream doesn't know this model
        "rejected",         # other 4xx: the request itself
        "context_length",   # the prompt doesn't fit this model
        "unsupported",      # this model refuses, or would ignore, something that the request asks for
        "bad_response",     # the answer is not what the API promises
        "stream_cut",       # the stream broke off before its last event
        "stream_stalled",   # no event for longer than the limit
        "stream_malformed", # a chunk that isn't JSON
        "stream_error",     # an error event inside the stream
        "unavailable",      # every deployment's breaker is open
        "cancelled",        # the client left
    }
)

LOCAL_FAILURES = frozenset({"loading", "out_of_files"})
"""Failures of this machine, which soon pass: a client should retry."""


class HeadgateError(Exception):
    """Base of all errors with a defined answer to the client.

    `kind` is OpenAI's `type`; `code` and `param` may be None. Each surface renders the error in its own shape.
    """

    status = 500
    kind = "server_error"
    code: str | None = None

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        status: int | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code if code is not None else type(self).code
        self.param = param
        self.status = status if status is not None else type(self).status
        self.retry_after_s = retry_after_s

    def bare(self) -> Self:
        """This error without its traceback and causes, to be kept.

        Their frames refer to the request with its body, and that to this error: the cycle would keep all of it in
        memory until the garbage collector runs.
        """
        self.__traceback__ = self.__context__ = self.__cause__ = None
        return self


class CallerError(HeadgateError):
    """The request can't be served as it stands."""

    status = 400
    kind = "invalid_request_error"


class TooLarge(CallerError):
    """The body is over the configured size."""

    status = 413
    code = "request_too_large"


class UnknownModel(CallerError):
    """No route or model has that name, or this key may not use it."""

    status = 404
    code = "model_not_found"


class NotFound(CallerError):
    """No such path or object exists."""

    status = 404
    code = "not_found"


class PolicyError(HeadgateError):
    """The key, its budget or its limits don't allow the request."""

    status = 403
    kind = "permission_error"


class Unauthorized(PolicyError):
    """The request has no key, or an unknown one."""

    status = 401
    kind = "authentication_error"
    code = "invalid_api_key"


class OverBudget(PolicyError):
    """The worst case of this request doesn't fit what is left of a budget."""

    status = 429
    kind = "insufficient_quota"
    code = "insufficient_quota"


class BudgetsAway(PolicyError):
    """What is left of a budget is unknown at the moment, for example because Redis or the database is away."""

    status = 503
    kind = "server_error"
    code = "budget_unavailable"


class RateLimited(PolicyError):
    """Too many requests or tokens in the window."""

    status = 429
    kind = "rate_limit_error"
    code = "rate_limit_exceeded"


class UpstreamError(HeadgateError):
    """A provider failed. `failure` is one of FAILURES."""

    status = 502
    kind = "upstream_error"

    def __init__(
        self,
        failure: str,
        message: str,
        *,
        status: int | None = None,
        retry_after_s: float | None = None,
        body: bytes = b"",
        upstream_status: int = 0,
    ) -> None:
        super().__init__(message, code=failure, status=status, retry_after_s=retry_after_s)
        assert failure in FAILURES, failure
        self.failure = failure
        self.body = body
        """The upstream's error body, passed on to the client where the fault is the client's (4xx); else empty."""
        self.upstream_status = upstream_status


class Draining(HeadgateError):
    """This worker is shutting down or at its limit of requests in flight; the client should try again elsewhere."""

    status = 503
    kind = "server_error"
    code = "draining"


class ConfigError(HeadgateError):
    """The configuration can't be used. `problems` lists every fault found, each with its path."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
