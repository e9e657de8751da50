"""The node's counters under their Prometheus names."""

from __future__ import annotations

from collections.abc import Mapping

from p2pnode.node.history import History
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


def history_metrics(history: History) -> Mapping[str, float]:
    """What is kept, and what had to go."""
    return {"p2pnode_history_messages_evicted_total": history.evicted, "p2pnode_history_bytes": history.bytes}


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
