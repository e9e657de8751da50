"""Messages over HTTP: to sidecars that no other road reaches, and to agents that run none."""

from __future__ import annotations

import json
import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from urllib.parse import urlsplit

import trio

from p2pnode.core.membership.record import Member, MemberState
from p2pnode.core.message import MessageId, SignedMessage, format_message_id
from p2pnode.core.peerid import PeerId
from p2pnode.errors import InvalidRequest, P2PNodeError, TooBusy, Unavailable
from p2pnode.logs import Throttled
from p2pnode.ports import Place
from p2pnode.ports.roads import LegacyAgent, Post, Target
from p2pnode.wire.payload import decode_payload, format_time

log = logging.getLogger(__name__)

SPREAD = 3
"""Sidecars that are asked at a time to spread a message for a node that is cut off; each gossips it on."""

ENOUGH = 2
PAUSES = (1.0, 30.0)
"""Shortest and longest time for which a sidecar that did not answer is spared."""

REMEMBERED = 5000
LEGACY_ATTEMPTS = 5
MAX_LEGACY_WAITING = 1000
MAX_TELLING = 1000
"""Agents, each with one opportunity, that are told or told again at the same time; the others wait."""

GONE_SECONDS = 3600.0
"""A member that was dead for longer is not tried any more."""


@dataclass(frozen=True, slots=True)
class Tools:
    """
    Args:
        me: our peer id.
        members: everybody who is known.
        places: where discovery sees agents.
        endpoints: of agents without a sidecar, as configured.
    """

    me: PeerId
    members: Callable[[], Iterable[Member]]
    places: Callable[[], Iterable[Place]]
    endpoints: Sequence[str]
    wall_ns: Callable[[], int]
    rng: Random


class Poster:
    """Made, then run."""

    def __init__(self, post: Post, tools: Tools) -> None:
        self._post = post
        self._tools = tools
        self._given: OrderedDict[MessageId, dict[str, bool]] = OrderedDict()
        """By message and URL: did it take it? False: it refused it for good."""
        self._spared: dict[str, tuple[float, float]] = {}
        self._told: OrderedDict[MessageId, None] = OrderedDict()
        self._to_tell: trio.MemorySendChannel[SignedMessage]
        self._to_tell, self._telling = trio.open_memory_channel[SignedMessage](MAX_LEGACY_WAITING)
        self._room = trio.Semaphore(MAX_TELLING)
        self._failures = Throttled(log)
        self.counted: Counter[tuple[str, str]] = Counter()
        """`sidecar` or `legacy`, and how it ended: `taken`, `failed`, `refused`."""

    # -- sidecars ----------------------------------------------------------------------

    def has_targets(self) -> bool:
        """Is there anybody to post to: a sidecar that takes messages by HTTP, or an agent that has none?"""
        return any(True for _ in self._carriers()) or bool(self.legacy_agents())

    def has_sidecars(self) -> bool:
        """Is there a sidecar that takes messages by HTTP, and did not fail to when it was asked last?"""
        return any(target.url not in self._spared for target in self._carriers())

    async def post(self, message: SignedMessage, *, everybody: bool, spread: bool) -> None:
        """Hand a message to other sidecars.

        Args:
            everybody: to each that takes messages by HTTP; else to those that gossip does not reach.
            spread: gossip has not spread it: then a few that pass it on are enough.

        Raises:
            Unavailable: not all that was wanted took it; what did is not asked again.
        """
        given = self._given.setdefault(message.id, {})
        while len(self._given) > REMEMBERED:
            self._given.popitem(last=False)
        targets = self._targets(given, everybody=everybody, spread=spread)
        async with trio.open_nursery() as nursery:
            for target in targets:
                nursery.start_soon(self._give, target, message, given)
        if everybody:
            left = [target for target in self._alive() if target.url not in given]
            if left:
                raise Unavailable(f"{len(left)} sidecars did not take it by HTTP", reason="http")
            if not any(given.values()):
                raise Unavailable("no other sidecar took it by HTTP", reason="http")
        elif spread:
            willing = sum(given.get(target.url, True) for target in self._carriers())
            if sum(given.values()) < min(ENOUGH, max(1, willing)):
                raise Unavailable("no other sidecar took it by HTTP", reason="http")
        elif left := [target for target in self._unreachable() if target.url not in given]:
            raise Unavailable(f"{len(left)} members that gossip does not reach did not take it by HTTP", reason="http")

    def _targets(self, given: Collection[str], *, everybody: bool, spread: bool) -> Sequence[Target]:
        now = trio.current_time()
        pool = self._carriers() if everybody or spread else self._unreachable()
        free = [each for each in pool if each.url not in given and self._spared.get(each.url, (0.0, 0.0))[0] <= now]
        if everybody or not spread:
            return free
        return self._tools.rng.sample(free, min(SPREAD, len(free)))

    async def _give(self, target: Target, message: SignedMessage, given: dict[str, bool]) -> None:
        try:
            await self._post.hand_over(target, message)
        except TooBusy:  # we are, not the target: it was not asked
            self.counted["sidecar", "failed"] += 1
        except Unavailable as error:
            pause = min(2 * self._spared.get(target.url, (0.0, PAUSES[0] / 2))[1], PAUSES[1])
            self._spared[target.url] = (trio.current_time() + pause, pause)
            while len(self._spared) > REMEMBERED:
                del self._spared[next(iter(self._spared))]
            self.counted["sidecar", "failed"] += 1
            log.debug("a sidecar takes nothing by HTTP", extra={"target": target.name, "reason": error.detail})
        except InvalidRequest as error:
            given[target.url] = False  # asked again it would say the same
            self.counted["sidecar", "refused"] += 1
            self._failures.warning("a sidecar refused a message", {"target": target.name, "reason": error.detail})
        else:
            given[target.url] = True
            self._spared.pop(target.url, None)
            self.counted["sidecar", "taken"] += 1

    def _carriers(self) -> Iterable[Target]:
        return (_target(member) for member in self._others() if member.record.carrier)

    def _alive(self) -> Iterable[Target]:
        return (_target(each) for each in self._others() if each.record.carrier and each.state is MemberState.ALIVE)

    def _unreachable(self) -> Iterable[Target]:
        return (_target(member) for member in self._lost() if member.record.carrier)

    def _lost(self) -> Iterable[Member]:
        return lost(self._tools.members(), self._tools.me, self._tools.wall_ns())

    def _others(self) -> Iterable[Member]:
        me = self._tools.me
        return (each for each in self._tools.members() if each.record.peer_id != me and not each.record.left)

    # -- agents without a sidecar ------------------------------------------------------

    def legacy_agents(self) -> Sequence[LegacyAgent]:
        """Configured ones, and tasks of the Swarm API that are no member's."""
        members = [member.record for member in self._tools.members() if not member.record.left]
        hosts = {addr.split("/")[2] for record in members for addr in record.addrs if addr.count("/") >= 2}
        ids = {record.agent_id for record in members}
        known = {_normal(record.endpoint) for record in members}
        found: dict[str, LegacyAgent] = {}
        for place in self._tools.places():
            agent = place.agent
            if agent is not None and agent.id not in ids and agent.p2p_addr.rpartition(":")[0] not in hosts:
                found[_normal(agent.endpoint)] = LegacyAgent(agent.name, agent.endpoint)
        for endpoint in self._tools.endpoints:
            found.setdefault(_normal(endpoint), LegacyAgent(endpoint, endpoint))
        return [found[each] for each in sorted(found) if each not in known]

    def tell_legacy(self, message: SignedMessage) -> None:
        """Post an opportunity to agents that have nothing else; once for each message."""
        if message.id in self._told or not self.legacy_agents():
            return
        self._told[message.id] = None
        while len(self._told) > REMEMBERED:
            self._told.popitem(last=False)
        try:
            self._to_tell.send_nowait(message)
        except trio.WouldBlock:
            self.counted["legacy", "dropped"] += 1
            self._failures.warning("too many opportunities wait for HTTP", {"id": format_message_id(message.id)})

    async def run(self) -> None:
        """Tell agents without a sidecar, until cancelled."""
        async with trio.open_nursery() as nursery:
            async for message in self._telling:
                await self._tell_all(message, nursery)

    async def _tell_all(self, message: SignedMessage, nursery: trio.Nursery) -> None:
        payload = decode_payload(message.data)
        document, metadata = payload.document or {}, payload.metadata
        agents = self.legacy_agents()
        log.warning(
            "falling back to HTTP",
            extra={
                "council_id": document.get("council_id"),
                "agents": len(agents),
                "id": format_message_id(message.id),
            },
        )
        body = json.dumps(document, ensure_ascii=False).encode()
        headers = {"Content-Type": "application/json", "X-Message-ID": format_message_id(message.id)}
        if metadata is not None and metadata.published_at_ns:
            headers["Published-At"] = format_time(metadata.published_at_ns)
        for agent in agents:
            await self._room.acquire()
            nursery.start_soon(self._tell, agent, body, headers)
        await trio.lowlevel.checkpoint()

    async def _tell(self, agent: LegacyAgent, body: bytes, headers: Mapping[str, str]) -> None:
        try:
            await self._try(agent, body, headers)
        finally:
            self._room.release()

    async def _try(self, agent: LegacyAgent, body: bytes, headers: Mapping[str, str]) -> None:
        pause = PAUSES[0]
        for attempt in range(1, LEGACY_ATTEMPTS + 1):
            try:
                await self._post.tell(agent, body, headers)
            except Unavailable as error:
                last: P2PNodeError = error
                if attempt < LEGACY_ATTEMPTS:
                    await trio.sleep(pause)
                    pause = min(2 * pause, PAUSES[1])
            except InvalidRequest as error:
                last = error
                break
            else:
                self.counted["legacy", "taken"] += 1
                return
        self.counted["legacy", "failed"] += 1
        log.warning(
            "an agent without a sidecar did not get an opportunity",
            extra={"agent": agent.name, "endpoint": agent.endpoint, "reason": last.detail},
        )

    def metrics(self) -> Mapping[str, float]:
        return {
            f'p2pnode_http_posts_total{{to="{to}",result="{result}"}}': float(count)
            for (to, result), count in self.counted.items()
        }


def lost(members: Iterable[Member], me: PeerId, wall_ns: int) -> Iterator[Member]:
    """Members that gossip does not reach and that did not leave, dead for an hour at most."""
    oldest = wall_ns - int(GONE_SECONDS * 1e9)
    for member in members:
        is_dead = member.state is MemberState.DEAD and member.gone_at_ns > oldest
        if (is_dead or member.state is MemberState.SUSPECT) and member.record.peer_id != me:
            yield member


def _normal(endpoint: str) -> str:
    """One text for all spellings of an agent's URL: case of the host, the scheme's own port, a slash at the end.

    What is no URL is left as it is: others write what they like.
    """
    try:
        parts = urlsplit(endpoint)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return endpoint
    return f"{parts.scheme}://{parts.hostname}:{port}{parts.path.rstrip('/')}"


def _target(member: Member) -> Target:
    return Target(member.record.name or member.record.peer_id, member.record.carrier)
