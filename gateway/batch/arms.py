"""The arms of a job (models, samples, providers' batch endpoints) and the capacities that limit them.

Capacities come from the configuration: the limits per minute of providers, routes and keys, and the number of calls
that the job makes at once. A limit per minute is treated as a constant rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gateway.batch.types import Arm, Capacity, Estimates
from gateway.config.types import Config, ModelConfig
from gateway.money.limits import Limit
from gateway.routes import RouteBook

ENDPOINT_KINDS = frozenset({"openai"})
"""Kinds of providers whose batch endpoints gateway/batch/endpoint.py can use."""
SELECTION = 0.5
"""Share of the possible gain from several samples that choosing among them realises, where no check tells right from
wrong answers: an assumption.
"""
SELECTION_SD = 0.25
"""Standard error of that share, also an assumption."""


def with_samples(estimates: Estimates, counts: Sequence[int], selection: float = SELECTION) -> Estimates:
    """Add an arm for each model and number of samples. At least one of b samples is right with probability
    1 - (1 - p)^b (Damani et al. 2024, section 3); the share `selection` of that gain is realised.
    """
    wider = estimates
    for count in counts:
        if count < 2:
            raise ValueError(f"the number of samples must be 2 or more, not {count}")
        arms = tuple(replace(arm, samples=count) for arm in estimates.arms)
        gain = (1.0 - (1.0 - estimates.quality) ** count) - estimates.quality
        selection_sd = np.float32(SELECTION_SD) * gain.mean(0)
        copy = replace(
            estimates,
            arms=arms,
            quality=estimates.quality + np.float32(selection) * gain,
            cost_usd=estimates.cost_usd * np.float32(count),
            output_tokens=estimates.output_tokens * np.float32(count),
            latency_s=estimates.latency_s * np.float32(count),
            quality_shift_sd=np.hypot(estimates.quality_shift_sd, selection_sd),
        )
        wider = joined(wider, copy)
    return wider


def with_endpoints(estimates: Estimates, config: Config, deadline_s: float) -> Estimates:
    """Add an arm for each model whose provider has a batch endpoint with a window that ends before the deadline."""
    wider = estimates
    for place, arm in enumerate(estimates.arms):
        offer = endpoint_of(config, arm.model)
        if offer is None or not arm.is_one_call:
            continue
        discount, window_s = offer
        if window_s > deadline_s:
            continue
        column = columns(estimates, [place])
        cheaper = replace(
            column,
            arms=(replace(arm, via="batch", window_s=window_s),),
            cost_usd=column.cost_usd * np.float32(1.0 - discount),
        )
        wider = joined(wider, cheaper)
    return wider


def endpoint_of(config: Config, model: str) -> tuple[float, float] | None:
    """Discount (a share of the price) and window in seconds of the batch endpoints of a model's providers; None where a
    provider of the model has none.
    """
    providers = {provider.name: provider for provider in config.providers}
    offers = []
    for deployment in _deployments(config, model):
        provider = providers[deployment.provider]
        if provider.kind not in ENDPOINT_KINDS or provider.batch_discount <= 0:
            return None
        offers.append((provider.batch_discount, provider.batch_window_s))
    return (min(discount for discount, _ in offers), max(window for _, window in offers)) if offers else None


_BY_ARM = ("quality", "quality_sd", "cost_usd", "output_tokens", "latency_s")
_OF_ARM = ("quality_shift_sd", "cost_shift_sd")


def columns(estimates: Estimates, places: Sequence[int]) -> Estimates:
    """The estimates of these arms only."""
    kept = list(places)
    return replace(
        estimates,
        arms=tuple(estimates.arms[place] for place in kept),
        **{name: getattr(estimates, name)[:, kept] for name in _BY_ARM},
        **{name: getattr(estimates, name)[kept] for name in _OF_ARM},
    )


def joined(one: Estimates, other: Estimates) -> Estimates:
    """The estimates with the arms of both, which must be of the same prompts."""
    return replace(
        one,
        arms=(*one.arms, *other.arms),
        **{name: np.concatenate([getattr(one, name), getattr(other, name)], axis=1) for name in _BY_ARM},
        **{name: np.concatenate([getattr(one, name), getattr(other, name)]) for name in _OF_ARM},
    )


# -- capacities


def capacities_of(
    config: Config,
    book: RouteBook,
    arms: Sequence[Arm],
    *,
    routes: Sequence[str],
    concurrency: int = 0,
    limits: Sequence[Limit] = (),
) -> tuple[Capacity, ...]:
    """Capacities of the providers behind these arms, of the job's routes and key (`limits`), and of the calls made at
    once (`concurrency` 0: no bound).
    """
    live = [arm.via == "live" for arm in arms]
    capacities: list[Capacity] = []
    for provider in config.providers:
        share = [
            _share(config, arm.model, provider.name) * is_live for arm, is_live in zip(arms, live, strict=True)
        ]
        capacities += _per_minute(f"provider {provider.name}", provider.rpm, provider.tpm, arms, share)
    for name in routes:
        route = book.routes.get(name)
        if route is not None:
            own = {model.name for model in route.models}
            share = [float(arm.model in own and is_live) for arm, is_live in zip(arms, live, strict=True)]
            capacities += _per_minute(f"route {name}", route.config.rpm, route.config.tpm, arms, share)
    for limit in limits:
        capacities += _per_minute(limit.id, limit.rpm, limit.tpm, arms, [float(is_live) for is_live in live])
    if concurrency:
        capacities.append(Capacity("calls at once", float(concurrency), seconds=tuple(map(float, live))))
    return tuple(capacities)


def _per_minute(
    name: str, rpm: int | None, tpm: int | None, arms: Sequence[Arm], share: Sequence[float]
) -> list[Capacity]:
    calls = tuple(arm.samples * part for arm, part in zip(arms, share, strict=True))
    capacities = []
    if rpm is not None and any(share):
        capacities.append(Capacity(f"{name}: requests", rpm / 60.0, requests=calls))
    if tpm is not None and any(share):
        capacities.append(Capacity(f"{name}: tokens", tpm / 60.0, input_tokens=calls, output_tokens=tuple(share)))
    return capacities


def _share(config: Config, model: str, provider: str) -> float:
    """The share of a model's calls that goes to this provider."""
    deployments = _deployments(config, model)
    total = sum(deployment.weight for deployment in deployments)
    own = sum(deployment.weight for deployment in deployments if deployment.provider == provider)
    return own / total if total else 0.0


def _deployments(config: Config, model: str) -> list[ModelConfig]:
    return [deployment for deployment in config.models if deployment.name == model]
