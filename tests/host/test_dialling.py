"""Dialling with and without a peer id: who answers is learnt, and there is never more than one link of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from p2pnode.core.peerid import PeerId
from p2pnode.errors import Unavailable
from p2pnode.host.foreign import to_library_id
from p2pnode.host.library import LibraryHost
from p2pnode.host.opening import open_host
from p2pnode.host.psk import NO_KEY_THERE, OTHER_KEY
from p2pnode.host.strangers import MAX_STRANGERS, Strangers
from p2pnode.identity import Identity
from p2pnode.ports import Link
from tests.host.raw import CLOSED, tcp_to
from tests.host.test_addresses import Resolver
from tests.stacks import Stack, on_both_stacks

KEY, ANOTHER, NONE = b"k" * 32, b"a" * 32, b""
LOOPBACK = ["/ip4/127.0.0.1/tcp/0"]
THREE = ["/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.2/tcp/0", "/ip4/127.0.0.3/tcp/0"]
DEADLINE_SECONDS = 25.0

with_and_without_a_key = pytest.mark.parametrize("key", [KEY, NONE], ids=["private", "public"])


class Watch:
    """What a host reports of its links."""

    def __init__(self) -> None:
        self.opened: list[Link] = []
        self.closed: list[PeerId] = []

    def link_opened(self, link: Link) -> None:
        self.opened.append(link)

    def link_closed(self, peer: PeerId, *, by_intent: bool) -> None:
        self.closed.append(peer)

    def link_silent(self, peer: PeerId) -> None: ...


@asynccontextmanager
async def opened(
    stack: Stack, listen: list[str] = LOOPBACK, key: bytes = NONE
) -> AsyncIterator[tuple[LibraryHost, Watch]]:
    watch = Watch()
    async with open_host(Identity.generate(), listen, stack=stack, network_key=key) as host:
        host.report_to(watch)
        with trio.fail_after(DEADLINE_SECONDS):
            yield host, watch


def plain(host: LibraryHost) -> list[str]:
    """Its addresses without its peer id."""
    return [addr.partition("/p2p/")[0] for addr in host.addrs()]


def connections(host: LibraryHost, peer: PeerId) -> int:
    return len([each for each in host.swarm.get_connections(to_library_id(peer)) if not each.is_closed])


async def until_linked(host: LibraryHost, peer: PeerId) -> None:
    while peer not in host.links():  # noqa: ASYNC110  # what the other does on a real socket
        await trio.sleep(0.005)


async def until_one_connection(one: LibraryHost, other: LibraryHost) -> None:
    """Both see one connection of the two and no more, and it works."""
    while not connections(one, other.peer_id) == connections(other, one.peer_id) == 1:  # noqa: ASYNC110
        await trio.sleep(0.005)
    await one.ping(other.peer_id)
    await other.ping(one.peer_id)


# -- who answers ----------------------------------------------------------------------------------


@on_both_stacks
@with_and_without_a_key
async def test_who_answers_is_learnt_in_the_handshake(stack: Stack, key: bytes) -> None:
    async with opened(stack, key=key) as (listener, theirs), opened(stack, [], key) as (us, ours):
        [addr] = plain(listener)
        assert await us.dial(addr) == listener.peer_id
        assert ours.opened == [Link(listener.peer_id, "outbound", addr)]
        assert await us.ping(listener.peer_id) >= 0
        await until_linked(listener, us.peer_id)
        assert [link.direction for link in theirs.opened] == ["inbound"]
        assert us.counters().get(("broken", "handshake"), 0) == 0


@on_both_stacks
async def test_a_name_without_a_peer_id_is_dialled_at_all_its_addresses(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(stack) as (listener, _), opened(stack, []) as (us, _):
        port = plain(listener)[0].rpartition("/")[2]

        class Names(Resolver):
            async def getaddrinfo(self, host: object, port: object, *rest: object) -> list[object]:  # type: ignore[override]
                await trio.lowlevel.checkpoint()
                return [(2, 1, 6, "", (ip, port)) for ip in ("127.0.0.9", "127.0.0.1")]

        trio.socket.set_custom_hostname_resolver(Names())
        assert await us.dial(f"/dns4/tasks.agents/tcp/{port}") == listener.peer_id


@on_both_stacks
async def test_a_probe_resolves_names_as_a_dial_does(stack: Stack) -> None:
    async with opened(stack) as (listener, watch), opened(stack, []) as (us, _):
        port = plain(listener)[0].rpartition("/")[2]
        assert await us.probe(listener.peer_id, [f"/dns4/localhost/tcp/{port}"], DEADLINE_SECONDS)
        assert not await us.probe(listener.peer_id, [f"/dns4/nowhere.invalid/tcp/{port}", "/x", ""], DEADLINE_SECONDS)
        assert not watch.opened


@on_both_stacks
async def test_a_fresh_probe_dials_whatever_a_link_says(stack: Stack) -> None:
    async with opened(stack) as (listener, theirs), opened(stack) as (us, ours):
        await us.dial(listener.addrs()[0])
        await us.ping(listener.peer_id)
        nobody = "/ip4/127.0.0.1/tcp/9"
        assert not await us.probe(listener.peer_id, [nobody], DEADLINE_SECONDS, fresh=True)
        assert await us.probe(listener.peer_id, plain(listener), DEADLINE_SECONDS, fresh=True)
        assert await us.probe(listener.peer_id, [nobody], DEADLINE_SECONDS) is (stack == "fused")
        await us.ping(listener.peer_id)
        assert len(ours.opened) == len(theirs.opened) == 1
        assert not ours.closed + theirs.closed


# -- never a second link --------------------------------------------------------------------------


@on_both_stacks
@with_and_without_a_key
async def test_twenty_dials_at_three_addresses_make_one_link(stack: Stack, key: bytes) -> None:
    async with opened(stack, THREE, key) as (listener, theirs), opened(stack, [], key) as (us, ours):
        answered: list[PeerId] = []

        async def dial(addr: str) -> None:
            answered.append(await us.dial(addr))

        async with trio.open_nursery() as nursery:
            for number in range(20):
                addr = plain(listener)[number % 3]
                nursery.start_soon(dial, f"{addr}/p2p/{listener.peer_id}" if number % 4 == 3 else addr)
        assert answered == [listener.peer_id] * 20
        await until_one_connection(us, listener)
        assert len(ours.opened) == len(theirs.opened) == 1
        assert not ours.closed + theirs.closed


@on_both_stacks
async def test_dialling_who_is_linked_leaves_the_link_alone(stack: Stack) -> None:
    async with opened(stack) as (listener, theirs), opened(stack) as (us, ours):
        await listener.dial(us.addrs()[0])
        for addr in (*plain(listener), *listener.addrs()):
            assert await us.dial(addr) == listener.peer_id
        await until_one_connection(us, listener)
        assert [link.direction for link in ours.opened] == ["inbound"]
        assert len(theirs.opened) == 1
        assert not ours.closed + theirs.closed


@on_both_stacks
@pytest.mark.parametrize("named", [(False, False), (True, False), (False, True), (True, True)])
async def test_two_that_dial_each_other_at_once_hear_of_one_link(stack: Stack, named: tuple[bool, bool]) -> None:
    async with opened(stack) as (one, ones), opened(stack) as (other, others):
        async with trio.open_nursery() as nursery:
            for dials, dialled, by_name in ((one, other, named[0]), (other, one, named[1])):
                nursery.start_soon(dials.dial, (dialled.addrs() if by_name else plain(dialled))[0])
        await until_one_connection(one, other)
        assert len(ones.opened) == len(others.opened) == 1
        assert not ones.closed + others.closed


# -- why not --------------------------------------------------------------------------------------


async def refused(host: LibraryHost, addr: str) -> tuple[str, str]:
    """Reason and text of a dial that fails, which leaves no connection behind."""
    with pytest.raises(Unavailable) as caught:
        await host.dial(addr)
    assert caught.value.detail.startswith(f"{addr}: ")
    assert not host.links()
    assert not host.swarm.get_connections()
    return caught.value.reason, caught.value.detail.removeprefix(f"{addr}: ")


@on_both_stacks
async def test_whoever_meets_itself_says_so_and_hangs_up(stack: Stack) -> None:
    async with opened(stack) as (us, watch):
        [addr] = plain(us)
        assert await refused(us, addr) == ("self", "this node itself answers there")
        with pytest.raises(Unavailable, match="is this node itself") as caught:
            await us.dial(us.addrs()[0])
        assert caught.value.reason == "self"
        assert not watch.opened


@on_both_stacks
async def test_a_name_that_leads_here_first_leads_on_to_the_others(stack: Stack) -> None:
    async with opened(stack, ["/ip4/127.0.0.2/tcp/0"]) as (us, _):
        port = plain(us)[0].rpartition("/")[2]
        async with opened(stack, [f"/ip4/127.0.0.3/tcp/{port}"]) as (listener, _):

            class Names(Resolver):
                async def getaddrinfo(self, host: object, port: object, *rest: object) -> list[object]:  # type: ignore[override]
                    await trio.lowlevel.checkpoint()
                    return [(2, 1, 6, "", (ip, port)) for ip in ("127.0.0.2", "127.0.0.3")]

            trio.socket.set_custom_hostname_resolver(Names())
            assert await us.dial(f"/dns/tasks.agents/tcp/{port}") == listener.peer_id


@on_both_stacks
async def test_somebody_else_is_named_and_so_is_who_was_meant(stack: Stack) -> None:
    meant = Identity.generate().peer_id
    async with opened(stack) as (listener, watch), opened(stack, []) as (us, _):
        reason, text = await refused(us, f"{plain(listener)[0]}/p2p/{meant}")
        assert reason == "other-peer"
        assert text == f"the address names {meant}, but {listener.peer_id} answers there"
        assert not watch.opened


@on_both_stacks
async def test_where_nobody_listens_the_systems_own_words_are_given(stack: Stack) -> None:
    async with opened(stack, []) as (us, _):
        assert await refused(us, "/ip4/127.0.0.1/tcp/9") == ("dial", "Connection refused")
        reason, text = await refused(us, "/dns4/nowhere.invalid/tcp/9")
        assert reason == "dns"
        assert "nowhere.invalid does not resolve" in text


@on_both_stacks
async def test_a_port_that_hangs_up_is_no_other_network_where_there_is_no_key(stack: Stack) -> None:
    async def hang_up(stream: trio.SocketStream) -> None:
        await stream.aclose()

    async with trio.open_nursery() as nursery, opened(stack, []) as (us, _):
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, hang_up, [listener])
        reason, _ = await refused(us, f"/ip4/127.0.0.1/tcp/{listener.socket.getsockname()[1]}")
        assert reason == "dial"
        nursery.cancel_scope.cancel()


@on_both_stacks
@pytest.mark.parametrize(
    ("theirs", "ours", "text"),
    [(KEY, ANOTHER, OTHER_KEY), (KEY, NONE, "it has a network key and this node none"), (NONE, KEY, NO_KEY_THERE)],
    ids=["another key", "no key here", "no key there"],
)
async def test_another_network_is_a_reason_of_its_own_and_its_callers_are_counted(
    stack: Stack, theirs: bytes, ours: bytes, text: str
) -> None:
    async with opened(stack, key=theirs) as (listener, watch), opened(stack, [], ours) as (us, _):
        while not listener.strangers():  # who hangs up before its words are read is not known to be a stranger
            reason, said = await refused(us, plain(listener)[0])
            assert reason == "network-key"
            assert text in said
            await trio.sleep(0.01)
        assert listener.strangers() == {"127.0.0.1": listener.counters()["refused", "network-key"]}
        assert not watch.opened
        assert not us.strangers()


@on_both_stacks
@with_and_without_a_key
async def test_a_health_check_is_no_stranger(stack: Stack, key: bytes) -> None:
    async with opened(stack, key=key) as (listener, _):
        for _ in range(5):
            async with await tcp_to(listener.addrs()[0]) as stream:
                await stream.send_eof()
                try:
                    while await stream.receive_some():
                        pass
                except CLOSED:
                    pass
        assert not listener.strangers()
        assert ("refused", "network-key") not in listener.counters()


def test_strangers_are_kept_in_the_order_of_their_latest_call_and_bounded() -> None:
    strangers = Strangers()
    for number in range(MAX_STRANGERS):
        strangers.came(f"10.0.0.{number}")
    strangers.came("10.0.0.0")
    strangers.came("10.9.9.9")
    by_ip = strangers.by_ip()
    assert len(by_ip) == MAX_STRANGERS
    assert list(by_ip)[-2:] == ["10.0.0.0", "10.9.9.9"]
    assert by_ip["10.0.0.0"] == 2
    assert "10.0.0.1" not in by_ip
    assert strangers.refused == MAX_STRANGERS + 2


# -- what ends in between -------------------------------------------------------------------------


@on_both_stacks
async def test_a_cancelled_dial_leaves_nothing_open_and_the_next_one_is_not_held_up(stack: Stack) -> None:
    dialled, hung_up = trio.Event(), trio.Event()

    async def stay_silent(stream: trio.SocketStream) -> None:
        dialled.set()
        try:
            async for _ in stream:
                pass
        except CLOSED:
            pass
        hung_up.set()

    async with trio.open_nursery() as nursery, opened(stack) as (listener, _), opened(stack, []) as (us, _):
        [silent] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, stay_silent, [silent])
        for suffix in ("", f"/p2p/{listener.peer_id}"):
            dialled, hung_up = trio.Event(), trio.Event()
            async with trio.open_nursery() as dials:
                dials.start_soon(us.dial, f"/ip4/127.0.0.1/tcp/{silent.socket.getsockname()[1]}{suffix}")
                await dialled.wait()
                dials.cancel_scope.cancel()
            await hung_up.wait()
        assert not us.swarm.get_connections()
        assert await us.dial(listener.addrs()[0]) == listener.peer_id
        nursery.cancel_scope.cancel()
