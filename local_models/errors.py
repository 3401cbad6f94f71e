"""Everything that can go wrong in a local model, split by who is at fault."""

from __future__ import annotations


class LocalModelError(Exception):
    """Base of all errors of this package that reach a caller."""


class CheckpointError(LocalModelError):
    """A model folder cannot be served; raised at load, names the file and what is wrong with it."""


class RequestRefused(LocalModelError):
    """The client's request is wrong; `code` and `param` are those of the OpenAI error shape."""

    def __init__(self, message: str, *, code: str = "invalid_value", param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


class PromptTooLong(RequestRefused):
    """Prompt and answer together can never fit the model's context or the engine's memory."""

    def __init__(self, message: str, param: str = "messages") -> None:
        super().__init__(message, code="context_length_exceeded", param=param)


class ModelLost(LocalModelError):
    """This model could not be loaded; the others of its server can be asked."""


class EngineFull(LocalModelError):
    """The waiting line is full; the same request may succeed after `retry_after_s`."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineDead(LocalModelError):
    """The engine has stopped; whoever supervises the process starts a new one."""
