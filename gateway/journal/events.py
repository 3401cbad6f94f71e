"""The events of background streams so far, for clients that read them at other workers or later. Every method blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import sqlalchemy as sa

from gateway.journal.tables import response_events
from gateway.journal.upsert import clean

_c = response_events.c
_decode = msgspec.json.Decoder(list[str]).decode


class Events:
    """The stored events of one database, numbered from 0 for each response. The last event of a response, which repeats
    all of it, is not stored.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    def add(
        self, response: str, tenant: str, place: int, events: Sequence[bytes], time_s: float, *, last: bool
    ) -> None:
        """Store events, the first of which has the number `place`; `last`: no more will follow. Adding the same events
        again changes nothing.
        """
        text = msgspec.json.encode([event.decode() for event in events]).decode()
        row = {"response": response, "place": place, "tenant": clean(tenant), "time_s": time_s, "last": last,
               "events": text}  # fmt: skip
        with self.engine.begin() as connection:
            connection.execute(sa.delete(response_events).where(_c.response == response, _c.place == place))
            connection.execute(sa.insert(response_events), row)

    def since(self, response: str, tenant: str, place: int) -> tuple[list[bytes], bool]:
        """The events from number `place` on, and whether more may follow."""
        mine = _c.response == clean(response), _c.tenant == clean(tenant)
        begun = sa.select(sa.func.max(_c.place)).where(*mine, _c.place <= place).scalar_subquery()
        query = sa.select(_c.place, _c.last, _c.events).where(*mine, _c.place >= sa.func.coalesce(begun, 0))
        found: list[bytes] = []
        more = True
        with self.engine.connect() as connection:
            for at, last, events in connection.execute(query.order_by(_c.place)):
                found += [event.encode() for number, event in enumerate(_decode(events), at) if number >= place]
                more = not last
        return found, more

    def known(self, response: str, tenant: str) -> tuple[int, bool]:
        """The number of stored events, and whether no more will follow."""
        mine = _c.response == clean(response), _c.tenant == clean(tenant)
        query = sa.select(_c.place, _c.events, _c.last).where(*mine)
        with self.engine.connect() as connection:
            found = connection.execute(query.order_by(_c.place.desc()).limit(1)).first()
        return (found.place + len(_decode(found.events)), found.last) if found is not None else (0, False)

    def remove(self, response: str, tenant: str) -> None:
        """Delete the events of one response."""
        with self.engine.begin() as connection:
            mine = _c.response == clean(response), _c.tenant == clean(tenant)
            connection.execute(sa.delete(response_events).where(*mine))

    def forget(self, old_s: float) -> None:
        """Delete events older than the Unix time `old_s`."""
        with self.engine.begin() as connection:
            connection.execute(sa.delete(response_events).where(_c.time_s < old_s))
