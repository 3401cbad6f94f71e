"""The dashboard's pages, one module each: they call the admin API's functions and render templates."""

from gateway.dashboard.pages import (
    access,
    audit,
    batch,
    cache,
    certificates,
    decisions,
    labels,
    learning,
    login,
    models,
    overview,
    reference,
    routes,
)

ROUTERS = tuple(
    page.router
    for page in (
        login, overview, routes, decisions, learning, certificates, cache, models, access, labels, audit, batch,
        reference,
    )
)  # fmt: skip
