"""The node's counters under their Prometheus names."""

from __future__ import annotations

from collections.abc import Mapping

from p2pnode.node.archive import Archive
from p2pnode.node.dialer import Dialer
from p2pnode.node.finder import Finder
from p2pnode.node.inbound import Inbound
from p2pnode.node.members import Members
from p2pnode.node.publish import Publisher
from p2pnode.ports import Gossip, Host


def series(name: str, value: float, **labels: str) -> tuple[str, float]:
    """`name{label="value"}` and its value."""
    inside = ",".join(f'{label}="{text}"' for label, text in labels.items())
    return (f"{name}{{{inside}}}" if inside else name), value


_HOST_SERIES = {
    "broken": ("p2pnode_connections_broken_total", "reason"),
    "failed": ("p2pnode_host_failures_total", "where"),
    "refused": ("p2pnode_connections_refused_total", "reason"),
}


def host_metrics(host: Host) -> Mapping[str, float]:
    """Links, connections that broke by reason, and failures of our own below the router."""
    rows = [series("p2pnode_links", len(host.links()))]
    for (what, why), count in host.counters().items():
        name, label = _HOST_SERIES[what]
        rows.append(series(name, count, **{label: why}))
    return dict(rows)


def member_metrics(members: Members) -> Mapping[str, float]:
    """Members by state, and records refused by reason."""
    states: dict[str, int] = {}
    for member in members.all().values():
        states[member.state.value] = states.get(member.state.value, 0) + 1
    return dict(
        [
            *(series("p2pnode_members", count, state=state) for state, count in states.items()),
            *(
                series("p2pnode_member_records_refused_total", count, reason=reason)
                for reason, count in members.refused.items()
            ),
            *(series("p2pnode_member_changes_total", count, to=state) for state, count in members.counted.items()),
        ]
    )


def discovery_metrics(finder: Finder, dialer: Dialer) -> Mapping[str, float]:
    """What each source found and how long its looks took, under the names that WHOOSH's operators chart; and dials."""
    rows = [series("whoosh_agent_discovery_total", count, method=method) for method, count in finder.counted.items()]
    for method, count in finder.looks.items():
        rows.append(series("whoosh_agent_discovery_duration_seconds_count", count, method=method))
        seconds = finder.look_seconds[method]
        rows.append(series("whoosh_agent_discovery_duration_seconds_sum", seconds, method=method))
    for report in finder.reports():
        labels = {"method": report.method, "subject": report.subject}
        rows.append(series("p2pnode_discovery_places", len(report.places), **labels))
        rows.append(series("p2pnode_discovery_troubles", len(report.troubles), **labels))
    rows += [series("p2pnode_dials_total", n, why=why, result=result) for (why, result), n in dialer.counted.items()]
    return dict(rows)


def archive_metrics(archive: Archive) -> Mapping[str, float]:
    """What is stored, what waits to be, what was not taken and what had to go."""
    rows = [series("p2pnode_store_bytes", archive.total_bytes), series("p2pnode_store_queued", archive.queued)]
    rows += [series("p2pnode_store_messages", len(archive.shelf(topic)), topic=topic) for topic in archive.topics()]
    rows += [series("p2pnode_store_refused_total", n, reason=reason) for reason, n in archive.refused.items()]
    rows += [series("p2pnode_store_dropped_total", n, reason=reason) for reason, n in archive.dropped.items()]
    return dict(rows)


def sync_metrics(counted: Mapping[tuple[str, str], int]) -> Mapping[str, float]:
    """What synchronisation did: exchanges by outcome, rounds, bytes, messages, refusals by reason, conflicts."""
    return dict(
        series(f"p2pnode_sync_{what}_total", n, **({"kind": kind} if kind else {}))
        for (what, kind), n in counted.items()
    )


def gossip_metrics(gossip: Gossip, inbound: Inbound, publisher: Publisher) -> Mapping[str, float]:
    """Verdicts by reason, queues and containers, and each topic's peers and counts."""
    rows = [series("p2pnode_outbound_waiting", gossip.waiting())]
    rows += [series("p2pnode_router_entries", size, container=name) for name, size in gossip.sizes().items()]
    rows += [
        series("p2pnode_gossip_inbound_total", count, verdict=verdict, reason=reason)
        for (verdict, reason), count in gossip.counters().items()
    ]
    for topic in gossip.topics():
        rows += [
            series("p2pnode_topic_peers", len(gossip.topic_peers(topic)), topic=topic),
            series("p2pnode_mesh_peers", len(gossip.mesh(topic)), topic=topic),
            series("p2pnode_messages_received_total", inbound.received[topic], topic=topic),
            series("p2pnode_messages_published_total", publisher.published[topic], topic=topic),
        ]
    rows += [series("p2pnode_publish_refused_total", n, reason=reason) for reason, n in publisher.refused.items()]
    return dict(rows)
