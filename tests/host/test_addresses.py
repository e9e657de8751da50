"""Multiaddrs as text: which can be dialled, and what stands for a wildcard."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.core.peerid import is_peer_id, peer_id_bytes
from p2pnode.errors import InvalidRequest, Unavailable
from p2pnode.host.addresses import dialable, split_peer, wildcard_to_interfaces
from p2pnode.identity import Identity
from tests.properties import many

PEER = Identity(b"p" * 32).peer_id


@pytest.mark.parametrize(
    "where",
    [
        "/ip4/10.0.0.1/tcp/9000",
        "/ip6/::1/tcp/9000",
        "/dns/boot.example.org/tcp/9000",
        "/dns4/tasks.chorus/tcp/9000",
        "/dns6/boot/tcp/1",
    ],
)
def test_a_dialable_address_is_split_at_its_peer(where: str) -> None:
    assert split_peer(f"{where}/p2p/{PEER}") == (where, PEER)
    assert split_peer(where) == (where, None)


@pytest.mark.parametrize(
    "addr",
    [
        "",
        "10.0.0.1:9000",
        "/ip4/10.0.0.1/tcp/9000/p2p/",
        "/ip4/10.0.0.1/tcp/99999/p2p/" + PEER,
        "/ip4/300.0.0.1/tcp/9000/p2p/" + PEER,
        "/ip4/10.0.0.1/tcp/9000/p2p/nobody",
        "/ip4/10.0.0.1/p2p/" + PEER,
        "/ip4/10.0.0.1/udp/9000/quic-v1/p2p/" + PEER,
        "/ip4/10.0.0.1/tcp/9000/ws/p2p/" + PEER,
        "/ip4/10.0.0.1/udp/1/tcp/2/p2p/" + PEER,
        "/tcp/80/p2p/" + PEER,
        "/p2p/" + PEER,
        "/unix/tmp/tcp/x/p2p/" + PEER,
        f"/ip4/10.0.0.1/tcp/9000/p2p/{PEER}/p2p-circuit/p2p/{PEER}",
    ],
)
def test_what_cannot_be_dialled_is_refused(addr: str) -> None:
    with pytest.raises(InvalidRequest):
        split_peer(addr)


PARTS = [
    "ip4",
    "ip6",
    "dns4",
    "dns",
    "tcp",
    "udp",
    "p2p",
    "ws",
    "unix",
    "10.0.0.1",
    "::1",
    "a..b",
    "80",
    PEER,
    "",
    "x",
    "p2p-circuit",
]


@many
@given(st.lists(st.sampled_from(PARTS), max_size=8).map(lambda parts: "/" + "/".join(parts)) | st.text(max_size=60))
def test_any_text_is_a_dialable_address_or_is_refused(addr: str) -> None:
    try:
        where, peer = split_peer(addr)
    except InvalidRequest:
        return
    assert peer is None or is_peer_id(peer_id_bytes(peer))
    assert len(where.split("/")) == 5


class Resolver(trio.abc.HostnameResolver):
    """Names of one machine; anything else does not resolve."""

    async def getaddrinfo(
        self, host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> list[Any]:
        await trio.lowlevel.checkpoint()
        if host not in ("two", b"two"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        found = [
            (socket.AF_INET, ("10.0.0.2", port)),
            (socket.AF_INET, ("10.0.0.2", port)),
            (socket.AF_INET6, ("fd00::2", port, 0, 0)),
        ]
        return [(kind, type, 6, "", where) for kind, where in found if family in (0, kind)]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> tuple[str, str]:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ("/ip4/10.0.0.1/tcp/9", ["/ip4/10.0.0.1/tcp/9"]),
        ("/ip6/::1/tcp/9", ["/ip6/::1/tcp/9"]),
        ("/dns/two/tcp/9", ["/ip4/10.0.0.2/tcp/9", "/ip6/fd00::2/tcp/9"]),
        ("/dns4/two/tcp/9", ["/ip4/10.0.0.2/tcp/9"]),
        ("/dns6/two/tcp/9", ["/ip6/fd00::2/tcp/9"]),
    ],
)
async def test_a_name_stands_for_all_its_addresses(where: str, found: list[str]) -> None:
    trio.socket.set_custom_hostname_resolver(Resolver())
    assert await dialable(where) == found


@pytest.mark.parametrize("name", ["nowhere", "a..b", "." * 5, "x" * 70])
async def test_a_name_that_does_not_resolve_is_unavailable(name: str) -> None:
    trio.socket.set_custom_hostname_resolver(Resolver())
    with pytest.raises(Unavailable, match="does not resolve") as caught:
        await dialable(f"/dns4/{name}/tcp/9")
    assert caught.value.reason == "dns"


def test_a_wildcard_is_never_told_to_others() -> None:
    out = wildcard_to_interfaces(["/ip4/0.0.0.0/tcp/9000", "/ip6/::/tcp/9000", "/ip4/10.1.2.3/tcp/1"])
    assert "/ip4/127.0.0.1/tcp/9000" in out
    assert out[-1] == "/ip4/10.1.2.3/tcp/1"
    assert len(set(out)) == len(out)
    own = [ipaddress.ip_address(addr.split("/")[2]) for addr in out[:-1]]
    assert not any(ip.is_unspecified or ip.is_link_local for ip in own)
    fours = [ip.is_loopback for ip in own if ip.version == 4]
    assert fours == sorted(fours), "loopback stands last"
