"""Whom a node dials and whose link it closes: bootstraps for ever, members so that it is no star, nobody in a loop."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
import trio
from trio.testing import MockClock

from p2pnode.core.links import LinkSettings
from p2pnode.core.membership.record import MemberRecord, MemberState
from p2pnode.core.message import Accept
from p2pnode.core.peerid import PeerId
from p2pnode.identity import Identity
from p2pnode.node.dialer import SAVED_PEERS, TARGET_SECONDS
from p2pnode.wire.members import EncodedNews, encode_news, sign_record
from tests.node.fakes import FakeHost, MemoryPeers, Network, Running, open_fleet, until
from tests.node.test_members import accused, in_gossip

NOBODY, ACCUSER = Identity(b"n" * 32), Identity(b"accuser!" * 4)
NOWHERE = f"/ip4/10.7.7.7/tcp/9000/p2p/{NOBODY.peer_id}"
LONGEST = LinkSettings().most_backoff_seconds


def state(running: Running, peer: PeerId) -> MemberState | None:
    member = running.members.get(peer)
    return member.state if member else None


def bootstrap_errors(running: Running) -> dict[str, str]:
    told = running.node.node()["bootstrap"]
    return {each["addr"]: each["error"] for each in told if each["error"]}


def dial_times(network: Network, addr: str) -> list[float]:
    return [dial.at for dial in network.dials if dial.addr == addr]


def hear(running: Running, *records: bytes, accusations: tuple[bytes, ...] = ()) -> None:
    assert running.members.judge(in_gossip(encode_news(EncodedNews(records, accusations)))) == Accept()


def tell(running: Running, number: int, addrs: tuple[str, ...] | None = None, *, left: bool = False) -> Identity:
    """Let a node know of a member that nobody runs."""
    identity = Identity(b"ghost" + number.to_bytes(27, "big"))
    record = MemberRecord(
        identity.peer_id,
        running.wall() // 10**6,
        f"ghost-{number}",
        "chorus",
        "online",
        (f"/ip4/10.6.{number // 250}.{number % 250}/tcp/1",) if addrs is None else addrs,
        left=left,
    )
    hear(running, sign_record(record, identity.sign))
    return identity


def tell_dead(running: Running, count: int) -> list[Identity]:
    """Let it know of members that died long ago."""
    hear(running, sign_record(MemberRecord(ACCUSER.peer_id, 1, "a", "chorus", "online", ()), ACCUSER.sign))
    at_ns = running.wall() - 60 * 10**9
    ghosts = []
    for number in range(count):
        identity = Identity(b"ghost" + number.to_bytes(27, "big"))
        record = MemberRecord(identity.peer_id, 1, "g", "chorus", "online", (f"/ip4/10.6.0.{number}/tcp/1",))
        hear(
            running,
            sign_record(record, identity.sign),
            accusations=(accused(ACCUSER, identity, 1, at_ns),),
        )
        assert state(running, identity.peer_id) is MemberState.DEAD
        ghosts.append(identity)
    return ghosts


@pytest.mark.slow
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
            longest = min(0.25 * 2**number, LONGEST)
            assert longest / 2 <= pause + 1e-6
            assert pause <= longest + 0.1
        assert 3600 / (LONGEST + 0.1) <= len(times) <= 3600 / (LONGEST / 2) + 10
        assert len({round(pause, 3) for pause in pauses[-20:]}) > 10, "the jitter is there"


async def test_nodes_that_start_together_do_not_dial_in_step(autojump_clock: MockClock) -> None:
    async with open_fleet() as fleet:
        nodes = [fleet.add(bootstrap=[NOWHERE]) for _ in range(10)]
        fleet.start(*nodes)
        await trio.sleep(100)
        last = {dial.peer: round(dial.at, 2) for dial in fleet.network.dials}
        assert len(set(last.values())) >= 9


@pytest.mark.parametrize("away", [1.0, 100.0, pytest.param(3_000.0, marks=pytest.mark.slow)])
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
        await until(lambda: first.peer_id in node.host.links(), seconds=LONGEST + 5)


async def test_a_bootstrap_that_was_met_through_others_is_no_longer_told_as_unreached(
    autojump_clock: MockClock,
) -> None:
    """It names nobody, so it is not dialled again once a member announces its address."""
    async with open_fleet() as fleet:
        late, first = fleet.add(), fleet.add()
        where = late.addr.rpartition("/p2p/")[0]
        fleet.network.kill(late.peer_id)
        node = fleet.add(bootstrap=[where, first.addr])
        fleet.start(first, node)
        await until(lambda: where in bootstrap_errors(node))
        await trio.sleep(60)
        fleet.network.revive(late.peer_id)
        hear(node, sign_record(dataclasses.replace(late.members.own, left=False), late.identity.sign))
        await until(lambda: state(node, late.peer_id) is MemberState.ALIVE)
        assert bootstrap_errors(node) == {}
        assert node.node.discovery()["sources"][0]["places"][0]["state"] in ("member", "linked")


async def test_a_bootstrap_whose_link_breaks_at_once_is_dialled_ever_more_slowly(autojump_clock: MockClock) -> None:
    async with open_fleet() as fleet:
        rude = fleet.add()
        node = fleet.add(bootstrap=[rude.addr])
        fleet.start(node)
        end = trio.current_time() + 600
        while trio.current_time() < end:
            await until(lambda: rude.peer_id in node.host.links())
            fleet.network.cut(rude.peer_id, node.peer_id)
        assert len(dial_times(fleet.network, rude.addr)) < 2 * 600 / LONGEST + 10


async def test_no_node_dials_itself(autojump_clock: MockClock) -> None:
    async with open_fleet() as fleet:
        node = fleet.add()
        again = fleet.add(bootstrap=[f"/ip4/9.9.9.9/tcp/1/p2p/{node.peer_id}"], identity=node.identity)
        fleet.start(again)
        await trio.sleep(60)
        assert fleet.network.dials == []
        assert "no source of peers is configured" in again.node.health().reasons[0]


async def test_links_are_made_up_to_the_target_and_the_fleet_is_no_star(autojump_clock: MockClock) -> None:
    async with open_fleet() as fleet:
        first = fleet.add(role="bootstrap")
        others = [fleet.add(bootstrap=[first.addr], target_links=4) for _ in range(15)]
        fleet.start(first, *others)
        await until(lambda: all(len(each.host.links()) >= 4 for each in others), seconds=60)
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


async def test_links_that_are_too_many_are_closed_with_a_goodbye_when_they_are_old_enough(
    autojump_clock: MockClock,
) -> None:
    async with open_fleet() as fleet:
        hub = fleet.add(target_links=1, max_links=4)
        others = [fleet.add(bootstrap=[hub.addr], target_links=1, own_links=1) for _ in range(10)]
        fleet.start(hub, *others)
        await until(lambda: len(hub.host.links()) == 10)
        grown = trio.current_time()
        await until(lambda: len(hub.host.links()) < 10)
        assert trio.current_time() - grown > LinkSettings().grace_seconds - 2
        await until(lambda: len(hub.host.links()) <= 4, seconds=60)
        await trio.sleep(10)
        assert {member.state for each in fleet.nodes for member in each.members.all().values()} == {"alive"}
        assert all(each.host.links() for each in others), "who was sent away has others"


async def test_who_closes_by_intent_is_not_redialled_at_once(autojump_clock: MockClock) -> None:
    async with open_fleet() as fleet:
        first, second = fleet.add(target_links=0, own_links=0), fleet.add(target_links=0, own_links=0)
        node = fleet.add(bootstrap=[first.addr, second.addr])
        fleet.start(first, second, node)
        await until(lambda: len(node.host.links()) == 2)
        await trio.sleep(30)
        fleet.network.dials.clear()
        fleet.network.cut(first.peer_id, node.peer_id, by_intent=True)
        await trio.sleep(LinkSettings().away_seconds - 1)
        assert fleet.network.dials == []
        await until(lambda: first.peer_id in node.host.links(), seconds=LONGEST + 2)


async def test_a_broken_link_is_mended_before_anyone_is_called_dead(autojump_clock: MockClock) -> None:
    async with open_fleet() as fleet:
        first = fleet.add()
        node = fleet.add(bootstrap=[first.addr])
        fleet.start(first, node)
        await until(lambda: len(node.node.peers()) == len(first.node.peers()) == 2)
        await trio.sleep(20)
        fleet.network.cut(first.peer_id, node.peer_id)
        await until(lambda: first.peer_id in node.host.links(), seconds=5)
        await trio.sleep(20)
        assert state(node, first.peer_id) is state(first, node.peer_id) is MemberState.ALIVE


async def test_a_hinted_peer_is_dialled_while_links_are_wanted(autojump_clock: MockClock) -> None:
    async with open_fleet() as fleet:
        stranger = FakeHost(fleet.network, NOBODY.peer_id, "/ip4/10.5.5.5/tcp/1")
        node = fleet.add()
        fleet.start(node)
        node.node._dialer.hint(NOBODY.peer_id, ("/ip4/10.4.4.4/tcp/1", stranger.addr))
        await until(lambda: NOBODY.peer_id in node.host.links(), seconds=1)


async def test_the_dead_are_tried_one_at_a_time_and_do_not_keep_the_living_waiting(autojump_clock: MockClock) -> None:
    async with open_fleet() as fleet:
        node = fleet.add(target_links=4)
        other = fleet.add(bootstrap=[node.addr])
        fleet.start(node, other)
        await until(lambda: bool(node.host.links()))
        ghosts = {ghost.peer_id for ghost in tell_dead(node, 12)}
        await until(lambda: all(state(other, ghost) is MemberState.DEAD for ghost in ghosts))
        fleet.network.dials.clear()
        fleet.network.dial_seconds = 5.0
        await trio.sleep(600)
        dials = [dial for dial in fleet.network.dials if dial.peer == node.peer_id]
        assert {PeerId(dial.addr.rpartition("/p2p/")[2]) for dial in dials} == ghosts
        assert all(after.at - before.at >= 5.0 for before, after in pairwise(dials))
        await until(lambda: fleet.network.dials[-1].at > trio.current_time() - 0.1)
        fleet.network.dial_seconds = 0.1
        living = fleet.add(target_links=0, own_links=0)
        hear(node, living.members.own.signed)
        await until(lambda: living.peer_id in node.host.links(), seconds=1)


async def test_who_left_is_not_dialled(autojump_clock: MockClock) -> None:
    async with open_fleet() as fleet:
        node = fleet.add()
        tell(node, 1, left=True)
        fleet.start(node)
        await trio.sleep(60)
        assert fleet.network.dials == []


async def test_every_address_of_a_member_is_tried(autojump_clock: MockClock) -> None:
    async with open_fleet() as fleet:
        node, other = fleet.add(), fleet.add(target_links=0, own_links=0)
        record = dataclasses.replace(other.members.own, addrs=("/ip4/10.4.4.4/tcp/1", other.host.addr))
        hear(node, sign_record(record, other.identity.sign))
        fleet.start(node)
        await until(lambda: other.peer_id in node.host.links(), seconds=5)


async def test_members_whose_addresses_swallow_everything_hold_no_dial_for_long(autojump_clock: MockClock) -> None:
    async with open_fleet() as fleet:
        fleet.network.dial_seconds = 10.0
        node = fleet.add()
        for number in range(4):
            tell(node, number, tuple(f"/ip4/10.6.{number}.{last}/tcp/1" for last in range(16)))
        fleet.start(node)
        await trio.sleep(1)
        living = fleet.add(target_links=0, own_links=0)
        hear(node, living.members.own.signed)
        await until(lambda: living.peer_id in node.host.links(), seconds=TARGET_SECONDS + 12)


# -- known peers -----------------------------------------------------------------------


async def test_saved_peers_are_dialled_first_when_no_bootstrap_answers(autojump_clock: MockClock) -> None:
    async with open_fleet() as fleet:
        other = fleet.add()
        known = MemoryPeers({other.peer_id: (other.host.addr,)})
        node = fleet.add(bootstrap=[NOWHERE], known=known)
        fleet.start(other, node)
        await until(lambda: other.peer_id in node.host.links(), seconds=1)


async def test_who_was_there_is_saved_and_found_again_without_any_bootstrap(autojump_clock: MockClock) -> None:
    async with open_fleet() as fleet:
        first = fleet.add()
        node = fleet.add(bootstrap=[first.addr])
        third = fleet.add(bootstrap=[first.addr])
        fleet.start(first, node, third)
        await until(lambda: node.known.saved.keys() == {first.peer_id, third.peer_id}, seconds=30)
        assert node.known.saved[first.peer_id] == (first.host.addr,)
        fleet.stop(node)
        fleet.stop(first)
        again = fleet.restart(node)
        fleet.start(again)
        await until(lambda: third.peer_id in again.host.links(), seconds=15)


async def test_of_many_members_the_linked_ones_are_saved_first(autojump_clock: MockClock) -> None:
    async with open_fleet() as fleet:
        node = fleet.add()
        other = fleet.add(bootstrap=[node.addr])
        for number in range(200):
            tell(node, number)
        fleet.start(node, other)
        await until(lambda: bool(node.known.saved))
        assert len(node.known.saved) == SAVED_PEERS
        assert next(iter(node.known.saved)) == other.peer_id


async def test_a_full_disk_ends_nothing_and_what_does_not_change_is_written_once(autojump_clock: MockClock) -> None:
    async with open_fleet() as fleet:
        first = fleet.add()
        known = MemoryPeers()
        known.broken = True
        node = fleet.add(bootstrap=[first.addr], known=known)
        fleet.start(first, node)
        await trio.sleep(120)
        assert node.host.links()
        known.broken = False
        await until(lambda: known.writes == 1, seconds=60)
        await trio.sleep(600)
        assert known.writes == 1
