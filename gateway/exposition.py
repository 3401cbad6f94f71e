"""Merges the metrics of all workers, and writes them in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from gateway.metrics import METRICS, SPECS, Labels, Series, Spec, read_snapshot


def merge(snapshots: Iterable[bytes]) -> bytes:
    """The metrics of all workers together in Prometheus' text format."""
    totals: dict[str, Series] = {}
    for snapshot in snapshots:
        for name, series in read_snapshot(snapshot).items():
            if name in SPECS:
                _add(totals.setdefault(name, {}), series, SPECS[name].merged)
    registry = CollectorRegistry()
    registry.register(_Families(totals))
    return generate_latest(registry)


def _add(total: Series, series: list[tuple[Labels, list[float]]], merged: str) -> None:
    combine = max if merged == "max" else float.__add__
    for labels, values in series:
        before = total.get(labels)
        total[labels] = [combine(a, b) for a, b in zip(before, values, strict=True)] if before else values


def total(snapshots: Iterable[bytes], name: str) -> float:
    """The sum of a counter or gauge over all workers and labels."""
    every = [series for snapshot in snapshots for series in read_snapshot(snapshot).get(name, [])]
    return sum(value for _, (value,) in every)


class _Families:
    """A Prometheus collector of merged series."""

    def __init__(self, totals: Mapping[str, Series]) -> None:
        self._totals = totals

    def collect(self) -> Iterable[Metric]:
        for spec in METRICS:
            if spec.name in self._totals:
                yield _family(spec, self._totals[spec.name])


def _family(spec: Spec, series: Series) -> Metric:
    if spec.kind == "histogram":
        histogram = HistogramMetricFamily(spec.name, spec.help, labels=spec.labels)
        for labels, (total, *counts) in sorted(series.items()):
            histogram.add_metric(labels, _cumulative(spec.buckets, counts), total)
        return histogram
    kind = CounterMetricFamily if spec.kind == "counter" else GaugeMetricFamily
    family = kind(spec.name, spec.help, labels=spec.labels)
    for labels, (value,) in sorted(series.items()):
        family.add_metric(labels, value)
    return family


def _cumulative(bounds: tuple[float, ...], counts: list[float]) -> list[tuple[str, float]]:
    """Counts per bucket as Prometheus' cumulative counts."""
    cumulative, total = [], 0.0
    for bound, count in zip([*map(str, map(float, bounds)), "+Inf"], counts, strict=True):
        total += count
        cumulative.append((bound, total))
    return cumulative
