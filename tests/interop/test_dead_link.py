"""A stock peer from which nothing comes any more, though its kernel, or a relay, goes on to acknowledge.

Only our own frames can tell: the library's stack is left to the kernel, which notices a dead link (`tests/e2e`), and
not a process that stands still.
"""

from __future__ import annotations

import pytest
import trio

from tests.interop.peers import KINDS, Kind, open_peer, wait_until
from tests.interop.relay import open_relay
from tests.interop.streams import ECHO, echo, linked, open_echo_host

NOTICED_SECONDS = 60.0
"""The figure that counts is printed; this only ends a test that waits in vain."""


async def test_the_fused_stack_notices_when_a_peer_falls_silent_whoever_dialled(
    capsys: pytest.CaptureFixture[str],
) -> None:
    noticed: dict[str, float] = {}
    async with trio.open_nursery() as nursery:
        for kind in KINDS:
            for we_dial in (True, False):
                nursery.start_soon(fall_silent, kind, we_dial, noticed)
    with capsys.disabled():
        print("\nsilence noticed after:", ", ".join(f"{what}: {after:.1f} s" for what, after in noticed.items()))


async def fall_silent(kind: Kind, we_dial: bool, noticed: dict[str, float]) -> None:
    async with open_peer(kind) as peer, open_echo_host("fused") as host:
        await peer.serve_echo(ECHO)
        async with open_relay(peer.addrs[0] if we_dial else host.addrs()[0]) as relay:
            await (host.dial(relay.addr) if we_dial else peer.dial(relay.addr))
            await linked(host, peer)
            assert await echo(host, peer.peer_id, streams=1, size=1) == 1
            relay.die()
            start = trio.current_time()

            async def is_noticed() -> bool:
                return peer.peer_id not in host.links()

            await wait_until(is_noticed, f"{kind} is given up", NOTICED_SECONDS)
            noticed[f"{kind}, {'dialled' if we_dial else 'dialling'}"] = trio.current_time() - start
