"""Whom a node dials: bootstraps for ever, some members so that the fleet is no star, never too many."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
import trio
from trio.testing import MockClock

from p2pnode.core.member import MemberRecord, MemberState
from p2pnode.core.peerid import PeerId
from p2pnode.identity import Identity
from p2pnode.node.dialer import OWN_DIALS_WANTED
from p2pnode.wire.members import sign_record
from tests.node.fakes import FakeHost, Network, Running, open_fleet, until

NOBODY = Identity(b"n" * 32)
NOWHERE = f"/ip4/10.7.7.7/tcp/9000/p2p/{NOBODY.peer_id}"


def state(running: Running, peer: PeerId) -> MemberState | None:
    known = running.node.members.table.get(peer)
    return known.state if known else None


def dial_times(network: Network, addr: str) -> list[float]:
    return [dial.at for dial in network.dials if dial.addr == addr]


def tell(running: Running, number: int, addrs: tuple[str, ...] | None = None) -> Identity:
    """Let a node know of a member that nobody runs."""
    identity = Identity(b"ghost" + number.to_bytes(27, "big"))
    record = MemberRecord(
        identity.peer_id,
        1,
        f"ghost-{number}",
        "chorus",
        "online",
        addrs or (f"/ip4/10.6.{number // 250}.{number % 250}/tcp/1",),
    )
    signed = sign_record(record, identity.sign)
    running.node.members.table.merge(dataclasses.replace(record, signed=signed), "gossip", 1)
    running.node._dialer.wake()
    return identity


async def test_a_bootstrap_that_is_down_is_dialled_for_ever_with_growing_jittered_pauses(
    autojump_clock: MockClock,
) -> None:
    async with open_fleet() as fleet:
        node = fleet.add(bootstrap=[NOWHERE])
        fleet.start(node)
        await trio.sleep(3600)
        times = dial_times(fleet.network, NOWHERE)
        pauses = [after - before - fleet.network.dial_seconds for before, after in pairwise(times)]
        for number, pause in enumerate(pauses):
            longest = min(0.25 * 2 ** (number + 1), 30.0)
            assert longest / 2 <= pause + 1e-6
            assert pause <= longest + 1e-6
        assert 3600 / 30 <= len(times) <= 3600 / 15 + 10
        assert len({round(pause, 3) for pause in pauses[-20:]}) > 10, "the jitter is there"


async def test_nodes_that_start_together_do_not_dial_in_step(autojump_clock: MockClock) -> None:
    async with open_fleet() as fleet:
        nodes = [fleet.add(bootstrap=[NOWHERE]) for _ in range(10)]
        fleet.start(*nodes)
        await trio.sleep(100)
        last = {dial.peer: round(dial.at, 2) for dial in fleet.network.dials}
        assert len(set(last.values())) >= 9


@pytest.mark.parametrize("away", [1.0, 100.0, 10_000.0])
async def test_a_bootstrap_that_comes_back_is_redialled(autojump_clock: MockClock, away: float) -> None:
    async with open_fleet() as fleet:
        first = fleet.add()
        node = fleet.add(bootstrap=[first.addr])
        fleet.start(first, node)
        await until(lambda: first.peer_id in node.host.links())
        assert node.node.health().readiness == "delivering"
        await trio.sleep(60)
        fleet.network.kill(first.peer_id)
        await trio.sleep(away)
        assert node.node.health().readiness == "not-ready"
        fleet.network.revive(first.peer_id)
        await until(lambda: first.peer_id in node.host.links(), seconds=45)


async def test_a_bootstrap_that_hangs_up_at_once_is_dialled_ever_more_slowly(autojump_clock: MockClock) -> None:
    async with open_fleet() as fleet:
        rude = fleet.add()
        node = fleet.add(bootstrap=[rude.addr])
        fleet.start(node)
        end = trio.current_time() + 600
        while trio.current_time() < end:
            await until(lambda: rude.peer_id in node.host.links())
            fleet.network.cut(rude.peer_id, node.peer_id)
        assert len(dial_times(fleet.network, rude.addr)) < 60


async def test_no_node_dials_itself(autojump_clock: MockClock) -> None:
    async with open_fleet() as fleet:
        node = fleet.add()
        again = fleet.add(bootstrap=[f"/ip4/9.9.9.9/tcp/1/p2p/{node.peer_id}"], identity=node.identity)
        fleet.start(again)
        await trio.sleep(60)
        assert fleet.network.dials == []
        assert "no bootstrap address is configured" in again.node.health().reasons[0]


def own_dials(running: Running, bootstrap: Running) -> int:
    return sum(
        link.direction == "outbound" and peer != bootstrap.peer_id for peer, link in running.host.links().items()
    )


async def test_members_are_dialled_so_that_the_fleet_is_no_star(autojump_clock: MockClock) -> None:
    async with open_fleet() as fleet:
        first = fleet.add(role="bootstrap")
        others = [fleet.add(bootstrap=[first.addr], target_links=4) for _ in range(15)]
        fleet.start(first, *others)
        # A link that the other side dialled first counts for it, so the last ones may find nobody left.
        await until(lambda: all(len(each.host.links()) >= 1 + OWN_DIALS_WANTED for each in others))
        await until(lambda: sum(own_dials(each, first) >= OWN_DIALS_WANTED for each in others) >= 12)
        fleet.stop(first)
        await trio.sleep(30)
        reached, edge = {others[0].peer_id}, [others[0]]
        by_id = {each.peer_id: each for each in others}
        while edge:
            for peer in edge.pop().host.links():
                if peer not in reached:
                    reached.add(peer)
                    edge.append(by_id[peer])
        assert len(reached) == 15


async def test_a_newcomer_dials_three_members_besides_its_bootstrap(autojump_clock: MockClock) -> None:
    async with open_fleet() as fleet:
        first = fleet.add(role="bootstrap")
        others = [fleet.add(bootstrap=[first.addr]) for _ in range(8)]
        fleet.start(first, *others)
        await trio.sleep(60)
        last = fleet.add(bootstrap=[first.addr], target_links=1)
        fleet.start(last)
        await until(lambda: own_dials(last, first) == OWN_DIALS_WANTED, seconds=20)
        await trio.sleep(60)
        assert own_dials(last, first) == OWN_DIALS_WANTED


class Watched:
    """The most links and dials that a node ever had at once."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self.most = 0

    async def watch(self) -> None:
        while True:
            links = {link.peer for link in self._running.host.links().values() if link.direction == "outbound"}
            self.most = max(self.most, len(links | self._running.node._dialer._dialling))
            self._running.node._dialer.wake()  # at any moment, as news of members do
            await trio.sleep(0.05)


@pytest.mark.parametrize("known_as", [MemberState.ALIVE, MemberState.SUSPECT, MemberState.DEAD])
@pytest.mark.parametrize("max_links", [1, 2, 4, 7])
async def test_no_more_links_are_made_than_allowed(
    autojump_clock: MockClock, max_links: int, known_as: MemberState
) -> None:
    async with open_fleet() as fleet:
        fleet.network.dial_seconds = 0.3
        others = [fleet.add(target_links=0) for _ in range(12)]
        node = fleet.add(target_links=max_links, max_links=max_links)
        for other in others:
            record = other.node.members.own
            node.node.members.table.merge(record, "gossip", 1)
            node.node.members.table.mark(other.peer_id, known_as)
            other.node._dialer = _NoDialer()  # type: ignore[assignment]
        watched = Watched(node)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watched.watch)
            nursery.start_soon(node.node._dialer.run)
            await trio.sleep(60)
            nursery.cancel_scope.cancel()
        assert len(node.host.links()) == watched.most == max_links


class _NoDialer:
    def wake(self) -> None: ...

    def link_closed(self, peer: PeerId) -> None: ...


async def test_a_lost_member_is_suspect_then_retried_then_dead_then_back(autojump_clock: MockClock) -> None:
    async with open_fleet() as fleet:
        first = fleet.add()
        node = fleet.add(bootstrap=[first.addr])
        third = fleet.add(bootstrap=[first.addr])
        fleet.start(first, node, third)
        await until(lambda: third.peer_id in node.host.links())
        await trio.sleep(10)
        fleet.network.dials.clear()
        fleet.network.kill(third.peer_id)
        assert state(node, third.peer_id) is MemberState.SUSPECT
        await until(lambda: state(node, third.peer_id) is MemberState.DEAD, seconds=30)
        assert len([dial for dial in fleet.network.dials if dial.addr == third.addr and dial.peer == node.peer_id]) == 2
        fleet.network.revive(third.peer_id)
        await until(lambda: state(node, third.peer_id) is MemberState.ALIVE, seconds=60)


async def test_a_cut_link_is_mended_before_anyone_is_called_dead(autojump_clock: MockClock) -> None:
    async with open_fleet() as fleet:
        first = fleet.add()
        node = fleet.add(bootstrap=[first.addr])
        fleet.start(first, node)
        await until(lambda: len(node.node.peers()) == len(first.node.peers()) == 2)
        fleet.network.cut(first.peer_id, node.peer_id)
        await until(lambda: first.peer_id in node.host.links(), seconds=5)
        assert state(node, first.peer_id) is state(first, node.peer_id) is MemberState.ALIVE


async def test_who_dials_us_while_we_fail_to_dial_it_is_alive(autojump_clock: MockClock) -> None:
    async with open_fleet() as fleet:
        fleet.network.dial_seconds = 5.0
        node = fleet.add()
        ghost = tell(node, 1)
        real = FakeHost(fleet.network, ghost.peer_id, "/ip4/10.5.5.5/tcp/1")
        fleet.start(node)
        await until(lambda: len(dial_times(fleet.network, f"/ip4/10.6.0.1/tcp/1/p2p/{ghost.peer_id}")) == 2)
        fleet.network.dial_seconds = 0.1
        await real.dial(node.addr)
        await trio.sleep(10)
        assert state(node, ghost.peer_id) is MemberState.ALIVE


async def test_the_dead_do_not_keep_the_living_waiting(autojump_clock: MockClock) -> None:
    async with open_fleet() as fleet:
        node = fleet.add(target_links=4)
        ghosts = [tell(node, number) for number in range(100)]
        for ghost in ghosts:
            node.node.members.table.mark(ghost.peer_id, MemberState.DEAD)
        fleet.network.dial_seconds = 1000.0
        fleet.start(node)
        await trio.sleep(60)
        fleet.network.dial_seconds = 0.1
        living = fleet.add(target_links=0)
        node.node.members.table.merge(living.node.members.own, "gossip", 1)
        node.node._dialer.wake()
        await until(lambda: living.peer_id in node.host.links(), seconds=1)


async def test_the_dead_are_still_tried_one_at_a_time(autojump_clock: MockClock) -> None:
    async with open_fleet() as fleet:
        node = fleet.add()
        ghosts = {tell(node, number).peer_id for number in range(20)}
        for ghost in ghosts:
            node.node.members.table.mark(ghost, MemberState.DEAD)
        fleet.network.dial_seconds = 1.0
        fleet.start(node)
        await trio.sleep(300)
        dialled = {PeerId(dial.addr.rpartition("/p2p/")[2]) for dial in fleet.network.dials}
        assert dialled == ghosts
        assert all(after.at - before.at >= 1.0 for before, after in pairwise(fleet.network.dials))


async def test_who_left_is_not_dialled(autojump_clock: MockClock) -> None:
    async with open_fleet() as fleet:
        node = fleet.add()
        ghost = tell(node, 1)
        record = node.node.members.table.all()[ghost.peer_id].record
        node.node.members.table.merge(dataclasses.replace(record, incarnation=2, left=True), "gossip", 1)
        fleet.start(node)
        await trio.sleep(60)
        assert fleet.network.dials == []


async def test_every_address_of_a_member_is_tried(autojump_clock: MockClock) -> None:
    async with open_fleet() as fleet:
        node, other = fleet.add(), fleet.add(target_links=0)
        record = dataclasses.replace(other.node.members.own, addrs=("/ip4/10.4.4.4/tcp/1", other.host.addr))
        node.node.members.table.merge(record, "gossip", 1)
        fleet.start(node)
        await until(lambda: other.peer_id in node.host.links(), seconds=5)
