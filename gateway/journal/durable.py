"""Durable writes to the journal: a record is on disk before its sender gets an answer."""

from __future__ import annotations

import logging
import sys

from gateway.errors import CallerError, HeadgateError
from gateway.journal.record import FeedbackRecord, ResponseRecord
from gateway.journal.spool import Spool


async def record_feedback(spool: Spool, feedback: FeedbackRecord) -> None:
    """Record feedback so that it survives a power loss. Raises CallerError where it is invalid, HeadgateError 503."""
    if not (feedback.decision_id or feedback.response_id or feedback.request_id):
        raise CallerError("feedback needs a decision_id, response_id or request_id", param="decision_id")
    if feedback.score is not None and not 0.0 <= feedback.score <= 1.0:
        raise CallerError("score must be between 0 and 1", param="score")
    await append_durably(spool, feedback)


async def append_durably(spool: Spool, record: FeedbackRecord | ResponseRecord) -> None:
    """Append a record and sync it to disk. Raises HeadgateError 503 where the spool is full or the disk fails."""
    if not spool.append(record):
        raise unavailable(spool.alarm)
    try:
        await spool.sync()
    except OSError as fault:
        raise unavailable(str(fault)) from fault


def unavailable(why: str) -> HeadgateError:
    return HeadgateError(
        f"the journal can't be used now: {why}", code="journal_unavailable", status=503, retry_after_s=1.0
    )


def database_said(error: Exception) -> str:
    """The database's message where the error is a failure of the database, else empty. Imports no database driver."""
    known = sys.modules.get("sqlalchemy.exc")
    if known is None or not isinstance(error, known.DBAPIError):
        return ""
    away = known.OperationalError, known.InterfaceError, known.InternalError
    return str(error.orig).strip() if isinstance(error, away) or type(error) is known.DatabaseError else ""


class OutageLog:
    """Logs the failures of something that is retried: the first one, each one with another message, and the recovery.
    """

    def __init__(self, log: logging.Logger, what: str) -> None:
        """`what`: the subject of the messages, a plural noun."""
        self._log, self._what = log, what
        self._logged = ""

    def fails(self, fault: Exception) -> None:
        message = database_said(fault) or str(fault)
        if message != self._logged:
            self._log.warning("%s wait: %s", self._what, message)
        self._logged = message

    def works(self) -> None:
        if self._logged:
            self._log.warning("%s go on", self._what)
        self._logged = ""
