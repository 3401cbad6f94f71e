"""One file per page: what it asks of the admin API's functions, and what it hands to its template."""

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
