"""A route's policy outside the request path: the same router, candidates and knobs that answer its
requests.
"""

from __future__ import annotations

import msgspec

from gateway.app import open_route_router, without_lost
from gateway.config.settings import Settings, read_settings
from gateway.config.types import Config, RouteConfig
from gateway.errors import CallerError
from gateway.journal.store import Store
from gateway.learn.online import recalled
from gateway.learn.whatif import Policy
from gateway.promote import Versions
from gateway.routes import RouteBook


def route_config(config: Config, route: str) -> RouteConfig:
    """The configuration of a route. Raises CallerError where there is none of that name."""
    found = next((one for one in config.routes if one.name == route), None)
    if found is None:
        names = ", ".join(one.name for one in config.routes) or "none"
        raise CallerError(f"no route is called '{route}'; there are: {names}")
    return found


def route_policy(config: Config, store: Store, route: str, *, router: str = "", explore: float | None = None) -> Policy:
    """The route's present policy, or the same with another router: an artefact, one of the route's versions, or a name.
    """
    stated = route_config(config, route)
    if explore is not None:
        stated = msgspec.structs.replace(stated, explore=explore)
    # a canary is left out: the policy is that of the incumbent
    served = Settings(routers=read_settings(config.server.run_dir).routers)
    settings = without_lost(served, served)[0]
    if router:
        settings = Settings(routers={route: artifact_of(config, store, route, router)})
    opened = recalled(open_route_router(stated, settings), config, route)
    book = RouteBook(msgspec.structs.replace(config, routes=[stated]), {route: opened})
    found = book.routes[route]
    assert found.router is not None
    return Policy(found.router, [model.candidate for model in found.models], found.knobs, found.default_model)


def artifact_of(config: Config, store: Store, route: str, router: str) -> str:
    """The artefact of the route's version of that name; where there is none, `router` itself, a path or a name."""
    known = Versions(store, config.server.run_dir).called(route, router)
    return known.artifact if known else router
