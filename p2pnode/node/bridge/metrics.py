"""A bridge's counters, and those of the connection to NATS, under the names that operators chart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from p2pnode.node.bridge.export import Exporter
from p2pnode.node.bridge.importing import Importer
from p2pnode.node.bridge.meshes import BridgedMeshes
from p2pnode.node.bridge.refusals import Refusals
from p2pnode.node.metrics import series
from p2pnode.ports.roads import Broker

_BY_SUBJECT = {
    "in": "nats_messages_in",
    "out": "nats_messages_out",
    "dropped": "p2pnode_nats_dropped_total",
    "take-failed": "p2pnode_nats_take_failed_total",
}
_WHOLE = {
    "disconnected": "p2pnode_nats_disconnects_total",
    "reconnected": "p2pnode_nats_reconnects_total",
    "slow-consumer": "p2pnode_nats_slow_consumers_total",
}


def broker_metrics(broker: Broker) -> Mapping[str, float]:
    """What any node with a NATS server has."""
    rows = [series("nats_connections", float(broker.state().connected))]
    rows += [series("nats_subscriptions", count, subject=subject) for subject, count in broker.subscriptions().items()]
    errors = 0
    for (what, subject), count in broker.counters().items():
        if (name := _BY_SUBJECT.get(what)) is not None:
            rows.append(series(name, count, subject=subject))
        elif (name := _WHOLE.get(what)) is not None:
            rows.append(series(name, count))
        if what == "out":
            rows.append(series("whoosh_nats_publish_total", count, subject=subject))
        elif what == "publish-failed":
            errors += count
    return dict([*rows, series("whoosh_nats_publish_errors_total", errors)])


def export_metrics(exporter: Exporter) -> Mapping[str, float]:
    """What goes to NATS, by topic."""
    rows = [series("p2pnode_bridge_lag_seconds", exporter.lag_seconds())]
    rows += [series("p2pnode_bridge_pending", count, topic=topic) for topic, count in exporter.pending().items()]
    rows += [series("p2pnode_bridge_published_total", n, topic=topic) for topic, n in exporter.published.items()]
    rows += [series("p2pnode_bridge_failed_total", n, topic=topic) for topic, n in exporter.failed.items()]
    rows += [
        series("p2pnode_bridge_skipped_total", count, topic=topic, reason=why)
        for (topic, why), count in exporter.skipped.items()
    ]
    return dict([*rows, series("p2pnode_bridge_lost", exporter.lost())])


def import_metrics(importer: Importer) -> Mapping[str, float]:
    """What comes from NATS, by subject."""
    rows = [
        series("nats_message_latency_seconds_sum", importer.latency_seconds),
        series("nats_message_latency_seconds_count", importer.latency_count),
        series("p2pnode_bridge_import_troubles", importer.troubled),
    ]
    for subject, tally in importer.tallies.items():
        rows.append(series("chorus_nats_receive_total", tally.received, subject=subject))
        for kind in ("signed", "plain"):
            rows.append(series("p2pnode_bridge_imported_total", getattr(tally, kind), subject=subject, kind=kind))
        rows.append(series("p2pnode_bridge_duplicates_total", tally.duplicates, subject=subject))
        rows.append(series("p2pnode_bridge_left_total", tally.left, subject=subject))
        rows.append(series("p2pnode_bridge_dropped_total", tally.dropped, subject=subject))
    return dict(rows)


def other_metrics(refusals: Refusals, meshes: BridgedMeshes) -> Mapping[str, float]:
    """What was refused for good, by reason; other bridges and who lives beyond them."""
    refused: Counter[tuple[str, str]] = Counter()
    for (way, _, reason), count in refusals.counted.items():
        refused[way, reason] += count
    bridges = Counter("beyond" if each["beyond"] else "here" for each in meshes.document())
    return dict(
        [
            *(
                series("p2pnode_bridge_refused_total", count, way=way, reason=reason)
                for (way, reason), count in refused.items()
            ),
            *(series("p2pnode_bridge_bridges", bridges[side], side=side) for side in ("here", "beyond")),
            series("p2pnode_bridge_members_beyond", len(meshes.beyond())),
            series("p2pnode_bridge_rolls_sent_total", meshes.sent),
            series("p2pnode_bridge_rolls_taken_total", meshes.taken),
            series("p2pnode_bridge_rolls_dropped_total", meshes.dropped),
        ]
    )
