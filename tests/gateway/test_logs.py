"""Logs are structured and contain neither secrets nor text of requests, by whatever way these come in."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import select
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.types import Auth, Config, KeyConfig, ProviderConfig, Secret, Storage
from gateway.logs import (
    MAX_CHARS,
    MOST_WAITING,
    JsonLines,
    NonBlockingHandler,
    SecretFilter,
    TextLines,
    append_to,
    secrets_of,
    set_up,
)
from tests.until import PATIENCE_S

SECRETS = {"plainword99", "hg-0123456789abcdef", "pass/w+rd"}
PROMPT = "how do I tell my doctor"


class Sink:
    """A logger with a real handler whose output can be read."""

    def __init__(self, style: Literal["json", "text"]) -> None:
        self.stream = io.StringIO()
        handler = logging.StreamHandler(self.stream)
        handler.setFormatter((JsonLines if style == "json" else TextLines)(SecretFilter(SECRETS)))
        self.log = logging.Logger("headgate.test")
        self.log.addHandler(handler)

    @property
    def text(self) -> str:
        return self.stream.getvalue()


@pytest.fixture(params=["json", "text"])
def sink(request: pytest.FixtureRequest) -> Sink:
    return Sink(request.param)


def test_known_secrets_are_hidden_on_every_path(sink: Sink) -> None:
    """Known secrets are hidden in the message, its arguments, nested extra fields, exceptions, their causes and stacks.
    """
    for secret in SECRETS:
        sink.log.info("key " + secret)
        sink.log.info("key %s of %r", secret, {"a": secret})
        sink.log.info(
            "x", extra={"provider": secret, "nested": {"deep": [secret, {"er": secret}]}, "raw": secret}
        )
        sink.log.info(secret + " %d", "not a number")
        sink.log.info("x", extra={"an_object": ValueError(secret)})
        try:
            try:
                raise OSError(f"inner {secret}")
            except OSError as error:
                raise RuntimeError(f"outer {secret}") from error
        except RuntimeError:
            sink.log.exception("failed with %s", secret)
        sink.log.warning("x", stack_info=True, extra={"url": f"http://h/?q={secret}"})
    assert sink.text.count("***") >= 20
    assert not any(secret in sink.text for secret in SECRETS)


@pytest.mark.parametrize(
    "leak",
    [
        "Authorization: Bearer abcDEF123.-_~+/=", "authorization: basic dXNlcjpwYXNz",
        "x-api-key: 4242424242", "[(b'x-api-key', b'4242424242')]",
        "[(b'authorization', b'Bearer 4242424242')]",
        '{"api_key": "4242424242"}', "{'api-key': b'4242424242'}", "sk-proj-4242424242424242",
        "hg-4242424242424242", "postgresql://me:4242424242@host/db", "redis://:4242424242@host",
        "password=4242424242",
    ],
)  # fmt: skip
def test_what_looks_like_a_credential_is_hidden(leak: str, sink: Sink) -> None:
    """Text that looks like a credential is hidden although it is no known secret."""
    sink.log.info("upstream said %s", leak)
    for part in ("4242", "abcDEF123", "dXNlcjpwYXNz"):
        assert part not in sink.text
    assert "***" in sink.text


@pytest.mark.parametrize("name", ["prompt", "messages", "content", "text", "body", "answer_text", "input"])
def test_fields_that_carry_text_of_requests_are_dropped(name: str, sink: Sink) -> None:
    """Only the size of such a field is logged, at any depth."""
    sink.log.info("x", extra={name: PROMPT, "call": {name: [{"role": "user", "x": PROMPT}]}})
    assert PROMPT not in sink.text and "of 23" in sink.text


@pytest.mark.parametrize(
    "name", ["api_key", "master_key", "session_token", "Authorization", "set-cookie", "secret"]
)
def test_fields_that_carry_secrets_are_hidden(name: str, sink: Sink) -> None:
    """A field with the name of a secret is hidden whatever its value."""
    sink.log.info("x", extra={name: 12345678, "headers": {name: "12345678"}})
    assert "12345678" not in sink.text


def test_json_is_one_object_a_line() -> None:
    """Each line has time, level, logger, message and the fields; line breaks can't forge a line."""
    sink = Sink("json")
    sink.log.warning("two\nlines", extra={"route": "auto", "tokens": 5, "ok": True, "none": None})
    sink.log.info("next")
    first, second = map(json.loads, sink.text.splitlines())
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "level": "warning", "logger": "headgate.test", "message": "two\\nlines",
        "route": "auto", "tokens": 5, "ok": True, "none": None,
    }  # fmt: skip
    assert second["message"] == "next"


def test_an_exception_is_told_by_type_and_place() -> None:
    """An exception is logged with its type and place, without values of local variables."""
    sink = Sink("json")
    hidden = PROMPT
    try:
        raise KeyError("route") from None
    except KeyError:
        sink.log.exception("broken")
    error = json.loads(sink.text)["error"]
    assert error.startswith("KeyError: 'route' [test_logs.py:") and hidden not in error


def test_a_long_message_is_cut(sink: Sink) -> None:
    """A message that is too long is cut, since only text of a request is that long."""
    sink.log.info("x" * 100_000)
    assert len(sink.text) < 9000


@given(st.text(min_size=4, max_size=30), st.text(max_size=50), st.text(max_size=50))
def test_a_known_secret_never_comes_through(secret: str, before: str, after: str) -> None:
    """A known secret is hidden wherever it stands and whatever its characters."""
    cleaned = SecretFilter({secret}).clean(before + secret + after)
    assert secret not in cleaned.replace("***", "\0") or secret in "\\n\\r***"


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=300))
def test_the_filter_takes_any_text(text: str) -> None:
    """The filter accepts any text and returns one line."""
    assert "\n" not in SecretFilter().clean(text)


@pytest.mark.parametrize("steers", ["\x1b[2K", "\x9b31m", "\r", "\x07", "\x7f", "\x85", "\u2028", "\u202e"])
def test_a_line_steers_no_terminal(sink: Sink, steers: str) -> None:
    """Control characters in text of clients and providers are escaped, so it can neither hide nor forge a line."""
    sink.log.warning("a model named %s", f"x{steers}y", extra={"agent": steers})
    assert not set(steers) - set("[2K31m") & set(sink.text), sink.text


def test_a_cut_leaves_no_part_of_a_secret() -> None:
    """A message that is too long is not cut within a secret."""
    for place in range(MAX_CHARS - 30, MAX_CHARS + 1):
        message = "x " * (place // 2) + "the-provider-secret" + "y" * 99
        assert "provider" not in SecretFilter(["the-provider-secret"]).clean(message)


@pytest.mark.parametrize("text", ["a.", "a-", "bearer ", "a://b:", "api_key", 'password="'])
def test_no_text_takes_the_filter_long(text: str) -> None:
    """No text makes the filter take long, so a request can't slow down the gateway by a message."""
    begun = time.process_time()
    SecretFilter(["secret"]).clean(text * (MAX_CHARS // len(text)))
    assert time.process_time() - begun < 0.1


def test_secrets_come_from_the_whole_configuration() -> None:
    """Keys, header values and the password of a URL are secrets, addresses are not."""
    config = Config(
        providers=[
            ProviderConfig(name="a", kind="openai", api_key=Secret("k1"), headers={"x-key": Secret("k2")})
        ],
        auth=Auth(master_key=Secret("k3"), keys=[KeyConfig(name="n", key=Secret("k4"))]),
        storage=Storage(url=Secret("postgresql://me:k5@host/db")),
    )
    assert secrets_of(config) - {""} == {"k1", "k2", "k3", "k4", "k5"}


@pytest.mark.parametrize("blocking", [True, False])
def test_nobody_waits_for_whoever_has_stopped_reading(blocking: bool) -> None:
    """Lines beyond a bound are dropped; once the log is read again, the others come whole, with the number of dropped
    lines.
    """
    read, written = os.pipe()
    os.set_blocking(written, blocking)  # as another program may have left a terminal
    handler = NonBlockingHandler(written)
    handler.setFormatter(TextLines(SecretFilter()))
    root, log = logging.getLogger("headgate.logs"), logging.Logger("headgate.test")
    log.addHandler(handler)
    root.addHandler(handler)
    try:
        count = MOST_WAITING + 1000
        for number in range(count):
            log.warning("%d %s", number, "x" * 1000)
        said = b""
        while b"were dropped" not in said or not said.endswith(b"\n"):
            assert select.select([read], [], [], PATIENCE_S)[0]
            said += os.read(read, 1 << 20)
        lines = said.decode().splitlines()
        assert all(line.endswith("x" * 1000) for line in lines[:-1])
        dropped = re.search(r"headgate.logs: (\d+) lines", lines[-1])
        assert dropped is not None and 0 < int(dropped[1]) == count - len(lines) + 1
        log.warning("the last")
        handler.flush()
        assert os.read(read, 1000).endswith(b"headgate.test: the last\n")
    finally:
        root.removeHandler(handler)
        os.close(read)


def test_a_log_that_is_cut_short_goes_on_at_its_beginning(tmp_path: Path) -> None:
    """After a truncation, as by logrotate's copytruncate, no hole is left, also where the shell opened the file by `>`.
    """
    path = tmp_path / "log"
    with path.open("wb") as file:
        handler = NonBlockingHandler(append_to(file.fileno()))
        handler.setFormatter(TextLines(SecretFilter()))
        log = logging.Logger("headgate.test")
        log.addHandler(handler)
        for said in ("before", "after"):
            os.truncate(path, 0)
            log.warning(said)
            handler.flush()
            assert path.read_bytes().endswith(b"headgate.test: %b\n" % said.encode())
        assert path.read_bytes().count(b"\n") == 1 and b"\0" not in path.read_bytes()


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    yield logger
    logger.handlers[:] = handlers
    logger.setLevel(level)


def test_every_logger_goes_through_the_secret_filter(root: logging.Logger) -> None:
    """Loggers of libraries and of the server are filtered as well."""
    stream = io.StringIO()
    set_up("info", "json", SECRETS, stream)
    for name in ("uvicorn.error", "uvicorn.access", "some.library"):
        logging.getLogger(name).warning("it is plainword99")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["message"] for line in lines] == ["it is ***"] * 3
