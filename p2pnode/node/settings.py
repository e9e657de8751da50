"""What a node is made from: its settings, its keys, its stores, and the roads beside gossip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from p2pnode.core.links import LinkSettings
from p2pnode.core.membership.record import MemberRecord
from p2pnode.core.message import Verify
from p2pnode.core.routing import Policy
from p2pnode.node.bridge import ImportKey
from p2pnode.node.councils import CouncilSettings
from p2pnode.node.deliveries import WebhookSettings
from p2pnode.node.finder import Chosen
from p2pnode.node.storing import Durability, Retention
from p2pnode.ports import KnownPeers, MessageStore, SeqnoStore
from p2pnode.ports.roads import Broker, Post
from p2pnode.wire.members import RecordVerify


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """
    Args:
        record: who we are: the member record without incarnation, addresses and signature.
        topics: subscribed from the start.
        bootstrap: multiaddrs to join by.
        sources: where else peers are looked for.
        mode: of discovery, as it was configured.
        links: how many to keep.
        publish_per_second: own messages admitted on average.
        publish_burst: own messages admitted at once.
        retention: how much is stored.
        durability: what a power cut may take.
        webhook: where the agent takes messages; None: nowhere.
        councils: whose word counts, and what this node does about them.
        carriers: which roads own messages take.
        cluster: of `backbeat.status.<cluster>`.
        subjects: more pairs of topic and NATS subject, `TOPIC=SUBJECT`.
        legacy: HTTP APIs of agents without a sidecar.
    """

    record: MemberRecord
    topics: Sequence[str]
    bootstrap: Sequence[str]
    sources: Sequence[Chosen]
    mode: str
    links: LinkSettings
    publish_per_second: float
    publish_burst: int
    retention: Retention
    durability: Durability
    webhook: WebhookSettings | None
    councils: CouncilSettings
    carriers: Policy = field(default_factory=Policy)
    cluster: str = "docker-unified-stack"
    subjects: Sequence[str] = ()
    legacy: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class OtherRoads:
    """NATS and HTTP, injected.

    Args:
        broker: None without NATS.
        post: None where nothing is posted.
        importing: of a bridge: signs what plain NATS clients publish, and whether that key was configured.
        durable: of a bridge: the name of its consumers.
    """

    broker: Broker | None = None
    post: Post | None = None
    importing: ImportKey | None = None
    durable: str = ""


@dataclass(frozen=True, slots=True)
class Keys:
    """Signing and verifying, injected.

    Args:
        origin: our peer id in bytes.
        sign: our signature of some bytes.
        verify_record: checks another's signature of some bytes.
        verify_message: checks a message's signature.
    """

    origin: bytes
    sign: Callable[[bytes], bytes]
    verify_record: RecordVerify
    verify_message: Verify


@dataclass(frozen=True, slots=True)
class Stores:
    """What outlives a run, injected.

    Args:
        seqnos: used sequence numbers.
        incarnations: used incarnations of our own record.
        known: peers that were there.
        messages: what was published and received.
        directory: where all this lies.
    """

    seqnos: SeqnoStore
    incarnations: SeqnoStore
    known: KnownPeers
    messages: MessageStore
    directory: Path
