"""Nothing is lost: who else holds what we publish, what neighbours have and we have not, what the agent handled."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

import trio

from p2pnode.core.itemset import BlockSet
from p2pnode.core.message import MessageId
from p2pnode.core.peerid import PeerId
from p2pnode.core.reconcile import ItemSet
from p2pnode.core.sync import item_key
from p2pnode.errors import EnvironmentFault
from p2pnode.node.archive import Archive
from p2pnode.node.deliveries import Deliveries, WebhookSettings
from p2pnode.node.held import HeldNotices
from p2pnode.node.metrics import sync_metrics
from p2pnode.node.outbox import Announcer
from p2pnode.node.sync import Sync
from p2pnode.node.trust import Trust
from p2pnode.ports import Change, Contents, Entry, Gossip, Host, Link, MessageStore
from p2pnode.wire.members import MEMBERS_TOPIC

log = logging.getLogger(__name__)


def _always(_: MessageId) -> bool:
    return True


def _nobody(_: Sequence[MessageId]) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Tools:
    """What keeping needs injected.

    Args:
        origin: our peer id in bytes.
        is_keeper: is a peer one of our nodes? Stock peers store nothing.
        name_of: the name of a member, None for a stranger.
        take: checks and stores what a neighbour brought by synchronisation; why it did not, None when it did.
        stopping: set when the node goes away.
        trust: what the agent gets of what is stored.
        is_gossiped: does an own message go by gossip? Others are not announced to neighbours.
        on_safe: told which own messages enough neighbours hold.
    """

    origin: bytes
    is_keeper: Callable[[PeerId], bool]
    name_of: Callable[[PeerId], str | None]
    take: Callable[[bytes, PeerId], str | None]
    stopping: trio.Event
    wall_ns: Callable[[], int]
    rng: Random
    trust: Trust = field(default_factory=Trust)
    is_gossiped: Callable[[MessageId], bool] = _always
    on_safe: Callable[[Sequence[MessageId]], None] = _nobody


class Keeping:
    """Made when there is a router, then loaded, then run, then closed.

    Args:
        webhook: where the agent takes messages; None: it reads event streams, or nothing.
    """

    def __init__(
        self,
        archive: Archive,
        store: MessageStore,
        host: Host,
        gossip: Gossip,
        webhook: WebhookSettings | None,
        tools: Tools,
    ) -> None:
        self._archive = archive
        self._store = store
        self.outbox = Announcer(
            gossip,
            origin=tools.origin,
            is_keeper=tools.is_keeper,
            bytes_of=archive.bytes_of,
            write=self._write,
            wall_ns=tools.wall_ns,
            on_safe=tools.on_safe,
        )
        self._is_gossiped = tools.is_gossiped
        self.notices = HeldNotices(
            gossip.send_held,
            is_told=lambda peer: peer in host.links() and tools.is_keeper(peer),
            is_stored=lambda message_id: archive.entry(message_id) is not None,
        )
        self.deliveries = Deliveries(
            archive,
            self._write,
            webhook,
            tools.name_of,
            stopping=tools.stopping,
            wall_ns=tools.wall_ns,
            rng=tools.rng,
            trust=tools.trust,
        )
        archive.on_stored.append(self._stored)
        archive.on_dropped.append(self.outbox.dropped)
        self.sync = Sync(
            host,
            _Shared(archive, gossip),
            tools.take,
            topic_peers=gossip.topic_peers,
            shared=self._shared_with,
            misbehaved=gossip.misbehaved,
            wall_ns=tools.wall_ns,
            rng=tools.rng,
        )

    def load(self, contents: Contents) -> None:
        """Take over what the store holds beside the messages."""
        waiting = [entry for each in contents.outbox if (entry := self._archive.entry(each)) is not None]
        self.outbox.load([entry for entry in waiting if self._is_gossiped(entry.id)])
        self.deliveries.load(contents.subscriptions, contents.dead_letters)

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            for task in (self.outbox.run, self.notices.run, self.sync.run, self.deliveries.run):
                nursery.start_soon(task)

    async def flush(self) -> None:
        """Write down what the agent handled, to spare it repetitions at the next start."""
        try:
            await self.deliveries.flush()
        except EnvironmentFault as error:
            log.warning("the agent's receipts could not be stored", extra={"reason": error.detail})

    def link_opened(self, link: Link) -> None:
        self.sync.link_opened(link)

    def link_closed(self, peer: PeerId) -> None:
        self.outbox.link_lost(peer)
        self.sync.link_closed(peer)

    def gap(self, topic: str, origin: PeerId) -> None:
        """An earlier message of an origin is missing."""
        self.sync.gap(topic, origin)

    def keeps(self, topic: str) -> None:
        """This node reads a topic from now on, if it did not before."""
        self.sync.keeps(topic)

    def joined(self, topic: str, peer: PeerId) -> None:
        """A neighbour reads a topic from now on."""
        if topic != MEMBERS_TOPIC:
            self.sync.joined(topic, peer)

    def metrics(self) -> Mapping[str, float]:
        return {**self.outbox.metrics(), **sync_metrics(self.sync.counted), **self.deliveries.metrics()}

    def _stored(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if entry.carrier == "local" and self._is_gossiped(entry.id):
                self.outbox.added(entry)
            self.sync.keeps(entry.topic)
        self.notices.stored(entries)
        if any(entry.carrier != "sync" for entry in entries):
            self.sync.news()

    def _shared_with(self, peer: PeerId, items: ItemSet) -> None:
        """A neighbour has these: what of them is ours and not safe yet may be so now."""
        unsafe = (entry for each in self.outbox.unsafe() if (entry := self._archive.entry(each)) is not None)
        self.outbox.seen_at(
            peer, [entry.id for entry in unsafe if items.get(item_key(entry.topic, entry.published_at_ns, entry.id))]
        )

    async def _write(self, changes: Sequence[Change]) -> None:
        await self._store.write(changes, full=False)


class _Shared:
    """The archive as synchronisation sees it: all topics that this node reads, those of which nothing came yet among
    them, and all of which it stored something, its own messages to others' topics too."""

    def __init__(self, archive: Archive, gossip: Gossip) -> None:
        self._archive = archive
        self._gossip = gossip

    def __contains__(self, message_id: MessageId) -> bool:
        return message_id in self._archive

    def topics(self) -> Sequence[str]:
        known = dict.fromkeys((*self._gossip.topics(), *self._archive.topics()))
        return [topic for topic in known if topic != MEMBERS_TOPIC]

    def items(self, topic: str) -> BlockSet:
        return self._archive.items(topic)

    def horizon(self, topic: str) -> int:
        return self._archive.horizon(topic)

    async def bytes_of(self, ids: Collection[MessageId]) -> Mapping[MessageId, bytes]:
        return await self._archive.bytes_of(ids)
