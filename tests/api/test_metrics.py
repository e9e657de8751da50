"""Rules of `/metrics`: the text parses whatever the node calls its series."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from p2pnode.api.metrics import split_series
from tests.api.fake import FakeSidecar, Served, serving

Sample = tuple[str, frozenset[tuple[str, str]]]


async def scrape(served: Served) -> tuple[dict[Sample, float], dict[str, str]]:
    """Values by name and labels, and types by family."""
    answer = await served.client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    values: dict[Sample, float] = {}
    types: dict[str, str] = {}
    for family in text_string_to_metric_families(answer.text):
        assert family.name not in types, "a family stands in one piece"
        types[family.name] = family.type
        for sample in family.samples:
            values[sample.name, frozenset(sample.labels.items())] = sample.value
    return values, types


def series(name: str, **labels: str) -> Sample:
    return name, frozenset(labels.items())


async def test_series_of_the_node_keep_name_labels_and_kind(sidecar: FakeSidecar, tmp_path: Path) -> None:
    sidecar.series = {
        'p2pnode_messages_total{topic="a",verdict="accept"}': 3,
        "p2pnode_links": 2,
        'p2pnode_messages_total{topic="a/b",verdict="ignore"}': 4.5,
    }
    async with serving(sidecar, tmp_path) as served:
        values, types = await scrape(served)
    assert values[series("p2pnode_messages_total", topic="a", verdict="accept")] == 3
    assert values[series("p2pnode_messages_total", topic="a/b", verdict="ignore")] == 4.5
    assert values[series("p2pnode_links")] == 2
    assert (types["p2pnode_messages"], types["p2pnode_links"]) == ("counter", "gauge")


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ('m{a="x"}', {"a": "x"}),
        ('m{a="x",b=""}', {"a": "x", "b": ""}),
        ('m{a="x", b="y",}', {"a": "x", "b": "y"}),
        ("m{}", {}),
        ("m", {}),
        ('m{a="with "quotes" inside",b="y"}', {"a": 'with "quotes" inside', "b": "y"}),
        (r'm{a="with \"quotes\" inside"}', {"a": 'with "quotes" inside'}),
        ('m{a="x,b=y}"}', {"a": "x,b=y}"}),
        (r'm{a="back\\slash",b="new\nline"}', {"a": "back\\slash", "b": "new\nline"}),
        ('m{a="raw\nline"}', {"a": "raw\nline"}),
    ],
)
async def test_label_values_survive_escaped_or_not(
    sidecar: FakeSidecar, tmp_path: Path, name: str, labels: dict[str, str]
) -> None:
    assert split_series(name) == ("m", labels)
    sidecar.series = {name: 1}
    async with serving(sidecar, tmp_path) as served:
        values, _ = await scrape(served)
    assert values[series("m", **labels)] == 1


async def test_unreadable_series_are_left_out_and_counted(sidecar: FakeSidecar, tmp_path: Path) -> None:
    sidecar.series = dict.fromkeys(["", "1x", "m{", 'm{a="x"} 5\nevil 1', "m{a=x}", 'm{a="x"b="y', "m n"], 1.0)
    sidecar.series["p2pnode_good"] = 1
    async with serving(sidecar, tmp_path) as served:
        values, _ = await scrape(served)
    assert values[series("p2pnode_good")] == 1
    assert values[series("p2pnode_api_malformed_series")] == 7
    assert not any(name in ("evil", "m") for name, _ in values)


async def test_the_process_is_measured(sidecar: FakeSidecar, tmp_path: Path) -> None:
    async with serving(sidecar, tmp_path) as served:
        values, _ = await scrape(served)
    assert values[series("process_resident_memory_bytes")] > 1_000_000
    assert values[series("process_cpu_seconds_total")] > 0
    assert values[series("process_open_fds")] > 0


async def test_answers_are_counted_by_route_and_status(sidecar: FakeSidecar, tmp_path: Path) -> None:
    async with serving(sidecar, tmp_path) as served:
        await served.client.post("/api/v1/topics/a/messages", content=b"x")
        await served.client.post("/api/v1/topics/b/messages", content=b"x")
        await served.client.delete("/api/v1/topics/b/messages")
        await served.client.get("/nowhere")
        await served.client.get("/elsewhere")
        values, types = await scrape(served)
    name, messages = "p2pnode_api_requests_total", "/api/v1/topics/{topic}/messages"
    assert values[series(name, route=messages, status="202")] == 2
    assert values[series(name, route=messages, status="405")] == 1
    assert values[series(name, route="-", status="404")] == 2
    assert values[series("p2pnode_api_connections")] == 1
    assert values[series("p2pnode_api_event_streams")] == 0
    assert types["p2pnode_api_requests"] == "counter"
