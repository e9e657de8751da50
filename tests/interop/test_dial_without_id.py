"""Stock peers dialled without saying who they are: Noise tells, and a second dial makes no second link."""

from __future__ import annotations

import pytest

from p2pnode.errors import Unavailable
from p2pnode.host.opening import open_host
from p2pnode.identity import Identity
from tests.interop.peers import INSTALLED, Kind, open_peer
from tests.interop.streams import only_connection
from tests.stacks import Stack, on_both_stacks, on_both_stacks_in_time

KEY = "3c" * 32


@on_both_stacks
@pytest.mark.parametrize("kind", INSTALLED)
@pytest.mark.parametrize("key", ["", KEY], ids=["public", "private"])
async def test_a_stock_peer_is_known_by_its_handshake(kind: Kind, stack: Stack, key: str) -> None:
    flags = ["--network-key", key] if key else []
    async with (
        open_peer(kind, *flags) as peer,
        open_host(Identity.generate(), [], stack=stack, network_key=bytes.fromhex(key)) as us,
    ):
        addr = peer.addrs[0].partition("/p2p/")[0]
        answered = [await us.dial(each) for each in (addr, addr, peer.addrs[0])]
        assert answered == [peer.peer_id] * 3
        assert await us.ping(answered[0]) >= 0
        assert not only_connection(us, peer.peer_id).is_closed


@on_both_stacks_in_time
@pytest.mark.parametrize("kind", INSTALLED)
@pytest.mark.parametrize("ours", ["", "c3" * 32], ids=["no key here", "another key"])
async def test_a_stock_peer_of_another_network_is_known_as_such(kind: Kind, stack: Stack, ours: str) -> None:
    async with (
        open_peer(kind, "--network-key", KEY) as peer,
        open_host(Identity.generate(), [], stack=stack, network_key=bytes.fromhex(ours)) as us,
    ):
        with pytest.raises(Unavailable) as caught:
            await us.dial(peer.addrs[0].partition("/p2p/")[0])
        reasons = {"network-key"}
        if kind == "js" and ours:
            # It says nothing to what it cannot read, and hangs up after ten seconds: as long as we wait for it.
            reasons.add("dial")
        assert caught.value.reason in reasons
        assert "network" in caught.value.detail
