"""What streams of the background have told so far, for readers at other workers and later ones. All of it blocks."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import sqlalchemy as sa

from gateway.journal.tables import response_events
from gateway.journal.upsert import clean

_c = response_events.c
_decode = msgspec.json.Decoder(list[str]).decode


class Events:
    """Over one database. Of a response they are numbered from 0; its last event, which tells the whole, is not kept."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    def add(
        self, response: str, tenant: str, place: int, events: Sequence[bytes], time_s: float, *, last: bool
    ) -> None:
        """Those from that place on. `last`: no more will come. Adding them again changes nothing."""
        told = msgspec.json.encode([event.decode() for event in events]).decode()
        row = {"response": response, "place": place, "tenant": clean(tenant), "time_s": time_s, "last": last,
               "events": told}  # fmt: skip
        with self.engine.begin() as connection:
            connection.execute(sa.delete(response_events).where(_c.response == response, _c.place == place))
            connection.execute(sa.insert(response_events), row)

    def since(self, response: str, tenant: str, place: int) -> tuple[list[bytes], bool]:
        """The events from that place on, and whether more may come."""
        mine = _c.response == clean(response), _c.tenant == clean(tenant)
        begun = sa.select(sa.func.max(_c.place)).where(*mine, _c.place <= place).scalar_subquery()
        query = sa.select(_c.place, _c.last, _c.events).where(*mine, _c.place >= sa.func.coalesce(begun, 0))
        told: list[bytes] = []
        more = True
        with self.engine.connect() as connection:
            for at, last, events in connection.execute(query.order_by(_c.place)):
                told += [event.encode() for number, event in enumerate(_decode(events), at) if number >= place]
                more = not last
        return told, more

    def known(self, response: str, tenant: str) -> tuple[int, bool]:
        """How many, and whether these are all."""
        mine = _c.response == clean(response), _c.tenant == clean(tenant)
        query = sa.select(_c.place, _c.events, _c.last).where(*mine)
        with self.engine.connect() as connection:
            found = connection.execute(query.order_by(_c.place.desc()).limit(1)).first()
        return (found.place + len(_decode(found.events)), found.last) if found is not None else (0, False)

    def remove(self, response: str, tenant: str) -> None:
        with self.engine.begin() as connection:
            mine = _c.response == clean(response), _c.tenant == clean(tenant)
            connection.execute(sa.delete(response_events).where(*mine))

    def forget(self, old_s: float) -> None:
        with self.engine.begin() as connection:
            connection.execute(sa.delete(response_events).where(_c.time_s < old_s))
