"""What the node needs of the world, and what the local API needs of the node: Protocols, nothing else.

One module for each seam; `roads` (NATS and HTTP) is imported by its own name.
"""

from p2pnode.ports.discovery import FoundAgent, Method, Place, Report, Source, SourceReport, Trouble
from p2pnode.ports.gossip import Gossip, GossipEvents
from p2pnode.ports.host import Direction, Host, HostEvents, Link
from p2pnode.ports.meshsub import Meshsub, MeshsubEvents
from p2pnode.ports.sidecar import Followed, Health, JsonObject, Published, Readiness, Sidecar
from p2pnode.ports.store import (
    Add,
    Advance,
    Bury,
    Change,
    Contents,
    DeadLetter,
    Drop,
    Entry,
    Exhume,
    Horizon,
    KnownPeers,
    MessageStore,
    OutboxDone,
    Release,
    Remember,
    SeqnoStore,
    Subscribe,
    Subscription,
    Took,
    Unsubscribe,
)

__all__ = [
    "Add",
    "Advance",
    "Bury",
    "Change",
    "Contents",
    "DeadLetter",
    "Direction",
    "Drop",
    "Entry",
    "Exhume",
    "Followed",
    "FoundAgent",
    "Gossip",
    "GossipEvents",
    "Health",
    "Horizon",
    "Host",
    "HostEvents",
    "JsonObject",
    "KnownPeers",
    "Link",
    "Meshsub",
    "MeshsubEvents",
    "MessageStore",
    "Method",
    "OutboxDone",
    "Place",
    "Published",
    "Readiness",
    "Release",
    "Remember",
    "Report",
    "SeqnoStore",
    "Sidecar",
    "Source",
    "SourceReport",
    "Subscribe",
    "Subscription",
    "Took",
    "Trouble",
    "Unsubscribe",
]
