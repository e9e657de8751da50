"""The bridge put together: export, import, and who lives on which side."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from random import Random

import trio

from p2pnode.core.peerid import PeerId
from p2pnode.core.subjects import Subjects
from p2pnode.node.archive import Archive
from p2pnode.node.bridge.due import topic_label
from p2pnode.node.bridge.export import Exporter, Neighbours, Write
from p2pnode.node.bridge.importing import Importer, ImportKey
from p2pnode.node.bridge.meshes import BridgedMeshes, Collect
from p2pnode.node.bridge.metrics import broker_metrics, export_metrics, import_metrics, other_metrics
from p2pnode.node.bridge.refusals import Refusals
from p2pnode.node.bridge.seen import Seen
from p2pnode.node.bridge.topics import THREADS, Topics
from p2pnode.node.intake import Intake
from p2pnode.node.members import Members
from p2pnode.ports import Contents, Host, JsonObject
from p2pnode.ports.roads import Broker
from p2pnode.wire.members import RecordVerify

log = logging.getLogger(__name__)

LAG_SECONDS = 30.0
"""A message that waits longer makes the bridge degraded."""


@dataclass(frozen=True, slots=True)
class BridgeTools:
    """What a bridge needs injected.

    Args:
        sign: our node's key: of rolls.
        verify: anybody's signature of some bytes.
        write: see `export.Write`.
        open_topic: makes room for a topic and subscribes to it; raises TooBusy at the node's bound.
        heard_topics: those that connected peers are subscribed to.
        collect: see `meshes.BridgedMeshes`.
    """

    sign: Callable[[bytes], bytes]
    verify: RecordVerify
    write: Write
    open_topic: Callable[[str], Awaitable[None]]
    heard_topics: Callable[[], Collection[str]]
    collect: Collect
    wall_ns: Callable[[], int]
    rng: Random


class Bridge:
    """Made before the broker runs, since it says what to read there; then loaded, then run.

    Args:
        broker: its `run` is the caller's, as is that of the archive and the members.
        durable: name of the JetStream consumers; bridges with the same name share the work. Empty: its own.
    """

    def __init__(
        self,
        broker: Broker,
        host: Host,
        archive: Archive,
        members: Members,
        intake: Intake,
        subjects: Subjects,
        key: ImportKey,
        durable: str,
        tools: BridgeTools,
    ) -> None:
        self._broker = broker
        self._host = host
        self._members = members
        self._subjects = subjects
        self._key = key
        self._refusals = Refusals(tools.wall_ns)
        self._topics = Topics(subjects, tools.open_topic, tools.heard_topics)
        self._meshes = BridgedMeshes(
            broker,
            host,
            members,
            key.peer_id,
            self._refusals,
            sign=tools.sign,
            verify=tools.verify,
            collect=tools.collect,
            wall_ns=tools.wall_ns,
        )
        self._exporter = Exporter(
            broker,
            archive,
            subjects,
            Neighbours(host.peer_id, self._meshes.partners, members.is_beyond),
            Seen(),
            self._refusals,
            tools.write,
            wall_ns=tools.wall_ns,
            rng=tools.rng,
        )
        self._importer = Importer(
            broker,
            intake,
            subjects,
            self._topics,
            key,
            durable,
            self._refusals,
            imports_plain=self._imports_plain,
            saw=self._exporter.saw,
            wall_ns=tools.wall_ns,
            rng=tools.rng,
        )

    def load(self, contents: Contents) -> None:
        """Take over what the store holds. With another store the stream is read from its beginning, so that what is on
        NATS already is not published again."""
        self._exporter.load(contents.subscriptions)
        self._importer.read(f"{self._host.peer_id}-{contents.number:x}")

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            for task in (self._topics.run, self._exporter.run, self._importer.run, self._meshes.run):
                nursery.start_soon(task)

    def _imports_plain(self, is_kept: bool) -> bool:
        """Do we sign for plain clients? Of a stream's messages all bridges with the same key make the same message, so
        those may all do it that have the key of the lowest one; else the lowest alone."""
        lowest = min((self._host.peer_id, *self._meshes.partners()))
        if lowest == self._host.peer_id:
            return True
        return is_kept and self._has_our_key(lowest)

    def _has_our_key(self, bridge: PeerId) -> bool:
        known = self._meshes.import_key_of(bridge)
        return self._key.is_shared if known is None else known == self._key.peer_id

    # -- telling -----------------------------------------------------------------------

    def document(self) -> JsonObject:
        """See `ports.Sidecar.bridge`."""
        uses_streams = self._broker.state().jetstream is not False
        return {
            "import_key": self._key.peer_id,
            "shared_key": self._key.is_shared,
            "broker": dataclasses.asdict(self._broker.state()),
            "importing": "all" if self._imports_plain(uses_streams) else "signed",
            "exports": self._exports(),
            "imports": self._imports(),
            "lag_seconds": round(self._exporter.lag_seconds(), 3),
            "troubled": self._importer.troubled,
            "bridges": self._meshes.document(),
            "beyond": sorted(self._meshes.beyond()),
            "last_refused": self._refusals.last(),
        }

    def _exports(self) -> list[JsonObject]:
        pending, exporter = self._exporter.pending(), self._exporter
        return [
            {
                "topic": topic,
                "subject": subject,
                "pending": pending.get(topic, 0),
                "published": exporter.published[topic],
                "skipped": sum(count for (of, _), count in exporter.skipped.items() if of == topic),
                "refused": self._refusals.of("export", topic),
                "failed": exporter.failed[topic],
            }
            for topic, subject in self._pairs().items()
        ]

    def _pairs(self) -> Mapping[str, str]:
        """Subjects, with their wildcards, by topic."""
        found: dict[str, str] = {}
        for subject in self._subjects.watched():
            known = self._subjects.topic_of(subject.replace("*", "any").replace(">", "any"))
            if known is not None:
                found[f"{THREADS}*" if subject.endswith(">") else topic_label(known[0])] = subject
        return found

    def _imports(self) -> list[JsonObject]:
        consumers = {each.subject: each for each in self._broker.consumers()}
        rows: list[JsonObject] = []
        for subject, tally in self._importer.tallies.items():
            consumer = consumers.get(subject)
            rows.append(
                {
                    "subject": subject,
                    "durable": consumer.durable if consumer is not None else None,
                    "pending": consumer.pending if consumer is not None else 0,
                    "unacknowledged": consumer.unacknowledged if consumer is not None else 0,
                    "redelivered": consumer.redelivered if consumer is not None else 0,
                    "signed": tally.signed,
                    "plain": tally.plain,
                    "duplicates": tally.duplicates,
                    "refused": self._refusals.of("import", subject),
                }
            )
        return rows

    def health_reasons(self) -> list[str]:
        """Why this bridge works less well than it should, each with what to do; empty when all is well."""
        state, reasons = self._broker.state(), []
        if not state.connected or state.code:
            what = state.problem or "there is no connection to a NATS server yet"
            reasons.append(f"bridge: {what}; {state.fix or 'see nats.url'}")
        elif (lag := self._exporter.lag_seconds()) >= LAG_SECONDS:
            why = self._exporter.trouble() or "see `p2pnode bridge status`"
            reasons.append(f"bridge: a message waits for NATS since {lag:.0f} s; {why}")
        if self._importer.troubled:
            reasons.append(
                f"bridge: {self._importer.troubled} messages of NATS could not be stored and are tried again; the log "
                "says why"
            )
        strangers = [each for each in self._meshes.partners() if not self._has_our_key(each)]
        if strangers:
            reasons.append(
                f"bridge: {strangers[0]} signs for plain NATS clients with another key; give all bridges of this mesh "
                "the same bridge.import_key_file"
            )
        return reasons

    def metrics(self) -> Mapping[str, float]:
        """By Prometheus name."""
        return {
            **broker_metrics(self._broker),
            **export_metrics(self._exporter),
            **import_metrics(self._importer),
            **other_metrics(self._refusals, self._meshes),
        }
