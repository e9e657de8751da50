"""Prometheus text: the node's counters, the process and the API itself.

The node hands over ready-made series names (`p2pnode_messages_total{topic="…"}`). They are taken apart and
written again by prometheus_client, so that no label value can break the text, escaped or not.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

logger = logging.getLogger(__name__)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SERIES = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})?", re.DOTALL)
# A value ends at the quote before the next label or the end, so one inside needs no backslash.
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="(.*?)"(?:,\s*(?=[a-zA-Z_][a-zA-Z0-9_]*=")|,?\s*\Z)', re.DOTALL)
_ESCAPE = re.compile(r'\\([\\"n])')


@dataclass(slots=True)
class ApiCounters:
    """What the API counts about itself; plain numbers, read when somebody asks.

    Args:
        requests: answers by route template and status; route `-` for what matched none.
        unexpected: errors that were our own fault: each is in the log with its traceback.
        connections: open now.
        event_streams: open now.
        malformed_series: series names of the node that could not be read at the last look.
    """

    requests: Counter[tuple[str, int]] = field(default_factory=Counter)
    unexpected: int = 0
    connections: int = 0
    event_streams: int = 0
    malformed_series: int = 0


def split_series(series: str) -> tuple[str, dict[str, str]]:
    """Name and labels of a ready-made series name.

    Raises:
        ValueError: it is none.
    """
    match = _SERIES.fullmatch(series)
    if match is None:
        raise ValueError(f"{series!r} is no series name")
    name, inside = match.group(1), match.group(2) or ""
    labels: dict[str, str] = {}
    at = 0
    while at < len(inside):
        label = _LABEL.match(inside, at)
        if label is None:
            raise ValueError(f"{series!r} has labels that cannot be read")
        labels[label.group(1)] = _ESCAPE.sub(lambda found: "\n" if found[1] == "n" else found[1], label.group(2))
        at = label.end()
    return name, labels


class Exposition(Collector):
    """`/metrics` with a registry of its own.

    Args:
        read: the node's counters and gauges (`Sidecar.metrics`).
        counters: the API's.
    """

    def __init__(self, read: Callable[[], Mapping[str, float]], counters: ApiCounters) -> None:
        self._read = read
        self._counters = counters
        self._warned = False
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        yield from self._node_metrics()
        yield from self._api_metrics()

    def _node_metrics(self) -> list[Metric]:
        families: dict[str, Metric] = {}
        malformed = 0
        for series, value in self._read().items():
            try:
                name, labels = split_series(series)
            except ValueError as error:
                malformed += 1
                self._warn_once(error)
                continue
            if name not in families:
                families[name] = _family(name)
            families[name].add_sample(name, labels, float(value))
        self._counters.malformed_series = malformed
        return [families[name] for name in sorted(families)]

    def _warn_once(self, error: ValueError) -> None:
        if not self._warned:
            self._warned = True
            logger.error("left out of /metrics, further ones are only counted: %s", error)

    def _api_metrics(self) -> Iterator[Metric]:
        counters = self._counters
        requests = CounterMetricFamily(
            "p2pnode_api_requests", "Requests answered, by route and status.", labels=["route", "status"]
        )
        for (route, status), count in sorted(counters.requests.items()):
            requests.add_metric([route, str(status)], count)
        yield requests
        yield CounterMetricFamily(
            "p2pnode_api_unexpected_errors", "Errors of the API itself; each is in the log.", value=counters.unexpected
        )
        yield GaugeMetricFamily("p2pnode_api_connections", "Open API connections.", value=counters.connections)
        yield GaugeMetricFamily("p2pnode_api_event_streams", "Open event streams.", value=counters.event_streams)
        yield GaugeMetricFamily(
            "p2pnode_api_malformed_series",
            "Series of the node left out because their name is unreadable.",
            value=counters.malformed_series,
        )


def _family(name: str) -> Metric:
    words = name.removeprefix("p2pnode_").removesuffix("_total").replace("_", " ")
    if name.endswith("_total"):
        return Metric(name.removesuffix("_total"), f"Counter of this node: {words}.", "counter")
    return Metric(name, f"Gauge of this node: {words}.", "gauge")
