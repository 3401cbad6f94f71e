"""Reads the configuration, from a file or as it is without one, and reports all of its faults at once.

It refuses what would otherwise be ignored silently: unknown keys (shape.py) and settings that don't fit together
(check.py). idle.py warns of valid settings without effect.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec

from gateway.config.check import check_config
from gateway.config.shape import Problems, read_section
from gateway.config.types import Config, ModelConfig, ProviderConfig, RouteConfig
from gateway.errors import ConfigError


def file_of(path: Path | None) -> str | None:
    """The given file, else `headgate.toml` in this folder if there is one, else None for the embedded configuration."""
    if path is not None:
        return str(path)
    return "headgate.toml" if Path("headgate.toml").is_file() else None


def load(path: str | None, env: Mapping[str, str], secrets: Collection[str] | None = None) -> Config:
    """The configuration of the file at `path`, or the embedded one if None. Raises ConfigError with every problem.

    `secrets`: paths of the secrets that the caller uses, None for all. Others stay as they are written if their
    variables are not set.
    """
    config, problems = check(path, env, secrets)
    if config is None:
        raise ConfigError(problems)
    return config


def check(
    path: str | None, env: Mapping[str, str], secrets: Collection[str] | None = None
) -> tuple[Config | None, list[str]]:
    """As `load`, but returns None and the list of problems instead of raising."""
    if path is None:
        return embedded(), []
    try:
        with open(path, "rb") as file:
            data = tomllib.loads(file.read().decode("utf-8-sig"))  # Windows editors write a byte order mark
    except OSError as error:
        return None, [f"{path}: {error.strerror}"]
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        return None, [f"{path}: not TOML: {error}"]
    return parse(data, env, secrets)


def parse(
    data: Mapping[str, Any], env: Mapping[str, str], secrets: Collection[str] | None = None
) -> tuple[Config | None, list[str]]:
    """The configuration of a decoded document, or None and the list of problems. `secrets`: as for `load`."""
    problems = Problems(secrets)
    config = read_section(Config, data, "", env, problems)
    check_config(config, problems)
    return (None if problems.lines else config), problems.lines


def embedded() -> Config:
    """What runs when no file is given: two small models of this machine behind one route."""
    small = ModelConfig(
        name="tiny-small", provider="home", input_usd_per_mtok=0.05, output_usd_per_mtok=0.20,
        context_tokens=512, max_output_tokens=64, tools=False, images=False, json=False, logprobs=True,
    )  # fmt: skip
    large = msgspec.structs.replace(
        small, name="tiny-large", input_usd_per_mtok=0.50, output_usd_per_mtok=2.00
    )
    return Config(
        providers=[ProviderConfig(name="home", kind="local")],
        models=[small, large],
        routes=[
            RouteConfig(
                name="auto", models=["tiny-small", "tiny-large"], cost_weight=0.7,
                cascade="confidence", accept_at=0.9, cache="exact",
            )
        ],
    )
