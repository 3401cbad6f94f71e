"""Differences of the engines that speak OpenAI's dialect: where to read health and load, and which fields they can't
take.

One class, one profile an engine; reaching them is the business of an ordinary `openai` provider, so nothing here opens
a connection. A profile says which path tells health, how to read load from the metrics page, and how to make a body the
engine takes. What an engine would silently ignore is refused here, because an answer that breaks the caller's wish
without a word is worse than an error. Our own server (`local_models.serve`) is a profile like others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from local_models.errors import RequestRefused

_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{([^}]*)\})?\s+([^\s]+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class Load:
    """How busy an engine is; None where it does not say."""

    waiting: float | None = None
    running: float | None = None
    kv_use: float | None = None
    """Share of key-value memory in use, 0..1."""
    prefix_hit_rate: float | None = None


@dataclass(frozen=True, slots=True)
class Profile:
    """One engine's peculiarities. Metric names are tried in order: engines rename them between versions."""

    name: str
    health_path: str
    metrics_path: str | None
    waiting: tuple[str, ...] = ()
    running: tuple[str, ...] = ()
    kv_use: tuple[str, ...] = ()
    hit_rate: tuple[str, ...] = ()
    hits: tuple[str, ...] = ()
    queries: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Fields the engine knows by another name."""
    ignored: frozenset[str] = frozenset()
    """Fields that it would accept and ignore; they are refused."""
    how_to_measure: str = ""
    """What the operator must enable to get the metrics page."""

    def read_load(self, page: str, model: str | None = None) -> Load:
        """Load from a Prometheus page; samples of several models or ranks are added up, ratios averaged."""
        samples = _samples(page, model)
        hit_rate = _mean(samples, self.hit_rate)
        queries = _sum(samples, self.queries)
        if hit_rate is None and queries:
            hit_rate = (_sum(samples, self.hits) or 0.0) / queries
        return Load(
            waiting=_sum(samples, self.waiting),
            running=_sum(samples, self.running),
            kv_use=_mean(samples, self.kv_use),
            prefix_hit_rate=hit_rate,
        )

    def adapt(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The body as this engine takes it; `RequestRefused` names a field that it would ignore."""
        for name in self.ignored:
            if _says_something(body.get(name)):
                raise RequestRefused(f"{self.name} does not heed {name}", code="unsupported_value", param=name)
        adapted = dict(body)
        for theirs, ours in ((theirs, ours) for ours, theirs in self.renamed.items() if ours in adapted):
            adapted[theirs] = adapted.pop(ours)
        return adapted


PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            name="headgate",
            health_path="/healthz",
            metrics_path="/metrics",
            waiting=("local_requests_waiting",),
            running=("local_requests_running",),
            kv_use=("local_kv_usage_ratio",),
            hits=("local_prefix_hit_tokens_total",),
            queries=("local_prefix_asked_tokens_total",),
        ),
        Profile(
            name="vllm",
            health_path="/health",
            metrics_path="/metrics",
            waiting=("vllm:num_requests_waiting",),
            running=("vllm:num_requests_running",),
            kv_use=("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
            hits=("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total"),
            queries=("vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total"),
        ),
        Profile(
            name="sglang",
            health_path="/health",
            metrics_path="/metrics",
            waiting=("sglang:num_queue_reqs",),
            running=("sglang:num_running_reqs",),
            kv_use=("sglang:token_usage",),
            hit_rate=("sglang:cache_hit_rate",),
            how_to_measure="start it with --enable-metrics",
        ),
        Profile(
            name="llama-server",
            health_path="/health",
            metrics_path="/metrics",
            waiting=("llamacpp:requests_deferred",),
            running=("llamacpp:requests_processing",),
            kv_use=("llamacpp:kv_cache_usage_ratio",),
            renamed={"max_completion_tokens": "max_tokens"},
            how_to_measure="start it with --metrics",
        ),
        Profile(
            name="ray-serve",
            health_path="/-/healthz",
            metrics_path=None,
            how_to_measure="Ray exports metrics of the cluster, not of one server; read load from there",
        ),
        Profile(
            name="transformers-serve",
            health_path="/health",
            metrics_path=None,
            renamed={"max_completion_tokens": "max_tokens"},
            ignored=frozenset({"stop", "n", "logprobs", "top_logprobs", "response_format"}),
        ),
    )
}


def _says_something(value: object) -> bool:
    """Whether a field's value asks for something: not where it is absent, off, or the default."""
    return value not in (None, False, 0, 1, [], "", {"type": "text"})


def _samples(page: str, model: str | None) -> dict[str, list[float]]:
    """Values by metric name; of one model where samples name theirs."""
    samples: dict[str, list[float]] = {}
    for line in page.splitlines():
        found = _SAMPLE.match(line)
        if not found:
            continue
        name, labels, text = found.groups()
        named = dict(_LABEL.findall(labels or ""))
        whose = named.get("model_name") or named.get("model")
        if model is not None and whose is not None and whose != model:
            continue
        try:
            samples.setdefault(name, []).append(float(text))
        except ValueError:
            continue
    return samples


def _first(samples: dict[str, list[float]], names: tuple[str, ...]) -> list[float]:
    return next((samples[name] for name in names if name in samples), [])


def _sum(samples: dict[str, list[float]], names: tuple[str, ...]) -> float | None:
    values = _first(samples, names)
    return sum(values) if values else None


def _mean(samples: dict[str, list[float]], names: tuple[str, ...]) -> float | None:
    values = _first(samples, names)
    return sum(values) / len(values) if values else None
