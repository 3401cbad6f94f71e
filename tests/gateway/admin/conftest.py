"""Fixtures: admin services on an empty journal, and a client of their admin API."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from gateway.admin.app import make_admin
from gateway.admin.services import AdminServices
from gateway.config.types import Auth, Config, ModelConfig, ProviderConfig, RouteConfig, Secret, Server, Storage
from gateway.journal.schema import migrate
from gateway.journal.ship import ShipState
from gateway.journal.store import open_store


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty, migrated database file to copy, because migrating takes longer than most tests."""
    path = tmp_path_factory.mktemp("admin") / "journal.db"
    migrate(f"sqlite:///{path}")
    return path


@pytest.fixture
def admin(migrated: Path, tmp_path: Path) -> AdminServices:
    """Admin services with two models, one route and no master key, so that this machine is admin."""
    return services_at(migrated, tmp_path)


def services_at(migrated: Path, folder: Path, master_key: str = "") -> AdminServices:
    shutil.copy(migrated, folder / "journal.db")
    config = Config(
        server=Server(run_dir=str(folder / "run")),
        storage=Storage(url=Secret(f"sqlite:///{folder}/journal.db")),
        auth=Auth(master_key=Secret(master_key)),
        providers=[ProviderConfig(name="acme", kind="openai", base_url="http://127.0.0.1:9/v1",
                                  api_key=Secret("sk-file"))],
        models=[
            ModelConfig(name="small", provider="acme", input_usd_per_mtok=0.1, output_usd_per_mtok=0.4),
            ModelConfig(name="large", provider="acme", input_usd_per_mtok=2.0, output_usd_per_mtok=8.0,
                        tool_usd={"file_search": 0.002}),
        ],
        routes=[RouteConfig(name="auto", models=["small", "large"], explore=0.2, cost_weight=0.5, store_text=True)],
    )  # fmt: skip
    Path(config.server.run_dir).mkdir(exist_ok=True)
    return AdminServices(config, open_store(config.storage.url), ShipState(), opened=True)


@pytest.fixture
async def client(admin: AdminServices) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(admin) as client:
        yield client


def client_of(
    admin: AdminServices, base_url: str = "http://localhost:8081", peer: str = "127.0.0.1"
) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(make_admin(admin), client=(peer, 1)), base_url=base_url
    )
