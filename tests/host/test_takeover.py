"""The seam to the library fails loudly when the library changes underneath."""

from __future__ import annotations

import inspect
import logging
from typing import Any

import pytest
import trio
from libp2p.abc import IMuxedConn, ISecureConn
from libp2p.host import basic_host
from libp2p.network.config import RetryConfig
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.stream.net_stream import NetStream
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.security.noise.patterns import PatternXX
from libp2p.security.security_multistream import SecurityMultistream
from libp2p.stream_muxer.mplex.mplex import MPLEX_PROTOCOL_ID, Mplex
from libp2p.stream_muxer.yamux.yamux import Yamux, YamuxStream
from libp2p.transport.exceptions import MuxerUpgradeFailure
from libp2p.transport.upgrader import TransportUpgrader

from p2pnode.host.fused.connection import FusedConnection
from p2pnode.host.fused.takeover import FusingUpgrader, Handshaken, LibraryChanged, take_over
from p2pnode.host.opening import open_host
from p2pnode.identity import Identity
from tests.host.raw import library_id, secured_pair, upgrader_of

DIALS, LISTENS = Identity(b"d" * 32), Identity(b"l" * 32)


async def test_keys_and_counters_of_a_finished_handshake_go_on_working() -> None:
    async with secured_pair(DIALS, LISTENS) as (dialled, accepted):
        near, far = take_over(dialled), take_over(accepted)
        for sender, receiver in ((near, far), (far, near)):
            for text in (b"one", b"two"):
                await sender.stream.send_all(sender.seal.seal(text))
                assert receiver.open.feed(await receiver.stream.receive_some(1000)) == text
        assert near.early == far.early == b""


async def test_what_the_library_sent_and_read_before_is_counted() -> None:
    async with secured_pair(DIALS, LISTENS) as (dialled, accepted):
        for _ in range(3):
            await dialled.write(b"by the library")
            assert await accepted.read(14) == b"by the library"
        near, far = take_over(dialled), take_over(accepted)
        await near.stream.send_all(near.seal.seal(b"by us"))
        assert far.open.feed(await far.stream.receive_some(1000)) == b"by us"


async def test_what_the_library_decrypted_and_nobody_read_is_handed_over() -> None:
    async with secured_pair(DIALS, LISTENS) as (dialled, accepted):
        await dialled.write(b"multistream and early data")
        assert await accepted.read(11) == b"multistream"
        taken = take_over(accepted)
        assert taken.early == b" and early data"
        await dialled.write(b"later")
        assert taken.open.feed(await taken.stream.receive_some(1000)) == b"later"


class Another:
    """What the library does not have there."""


@pytest.mark.parametrize(
    ("path", "where"),
    [
        ("conn", "session.conn is a Another"),
        ("conn.read_writer.read_write_closer", "below the Noise frames is a Another"),
        ("conn.read_writer.read_write_closer.stream", "raw.stream is a Another"),
        ("conn.read_writer.read_write_closer.stream.stream", "tcp.stream is a Another"),
        ("conn.noise_state.noise_protocol.cipher_state_encrypt.cipher.cipher", "cipher is a Another"),
        ("conn.noise_state.noise_protocol.cipher_state_decrypt.cipher.cipher", "cipher is a Another"),
        ("conn.noise_state.noise_protocol.cipher_state_encrypt.n", "nonce is a Another"),
        ("conn.read_writer", "'read_write_closer'"),
        ("conn.noise_state", "'noise_protocol'"),
        ("conn.noise_state.noise_protocol.cipher_state_encrypt", "'cipher'"),
    ],
)
async def test_something_else_in_its_place_is_named(path: str, where: str) -> None:
    async with secured_pair(DIALS, LISTENS) as (dialled, _):
        *way, name = path.split(".")
        holder: Any = dialled
        for step in way:
            holder = getattr(holder, step)
        original = getattr(holder, name)
        setattr(holder, name, Another())
        with pytest.raises(LibraryChanged) as caught:
            take_over(dialled)
        assert where in str(caught.value)
        assert "transport.stack = library" in str(caught.value)
        setattr(holder, name, original)
        take_over(dialled)


def test_another_session_than_that_of_noise_is_named() -> None:
    stranger: Any = Another()
    with pytest.raises(LibraryChanged, match="session is a Another"):
        take_over(stranger)


def never(handshaken: Handshaken, peer: ID, dialled: bool) -> IMuxedConn:
    raise AssertionError("there was nothing to agree on")


@pytest.mark.parametrize("we_dial", [True, False])
async def test_a_peer_without_yamux_is_refused_with_the_librarys_own_error(we_dial: bool) -> None:
    async with secured_pair(DIALS, LISTENS) as (dialled, accepted):
        ours, theirs = (dialled, accepted) if we_dial else (accepted, dialled)
        us, them = (DIALS, LISTENS) if we_dial else (LISTENS, DIALS)
        other = upgrader_of(them, MPLEX_PROTOCOL_ID, Mplex)

        async def speak_mplex() -> None:
            # Whoever dialled hears the refusal; whoever listens waits for a better offer until it is closed.
            with pytest.raises(MuxerUpgradeFailure):
                await other.upgrade_connection(theirs, library_id(us))
            await theirs.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(speak_mplex)
            with pytest.raises(MuxerUpgradeFailure):
                await FusingUpgrader(upgrader_of(us), never).upgrade_connection(ours, library_id(them))
            await ours.close()


async def test_a_changed_library_is_said_in_the_log_where_it_would_swallow_the_error(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changed(secured: ISecureConn) -> Handshaken:
        raise LibraryChanged("py-libp2p: everything is new")

    async with open_host(LISTENS, ["/ip4/127.0.0.1/tcp/0"]) as host, open_host(DIALS, [], stack="library") as other:
        monkeypatch.setattr("p2pnode.host.fused.takeover.take_over", changed)
        with caplog.at_level(logging.WARNING):
            try:
                await other.dial(host.addrs()[0])
            except Exception as error:
                assert not isinstance(error, LibraryChanged)  # noqa: PT017  # it may see the connection end later
    assert "everything is new" in str([vars(record) for record in caplog.records])


# -- what is relied on beyond the session ---------------------------------------------------------


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_the_librarys_calls_have_the_signatures_that_we_call_and_replace() -> None:
    assert parameters(TransportUpgrader.upgrade_connection) == parameters(FusingUpgrader.upgrade_connection)
    assert parameters(TransportUpgrader.upgrade_connection) == ["self", "conn", "peer_id"]
    assert parameters(Swarm.add_conn) == ["self", "muxed_conn", "direction"]
    assert parameters(SecurityMultistream.secure_outbound) == ["self", "conn", "peer_id"]
    assert parameters(PatternXX.handshake_outbound) == ["self", "conn", "remote_peer"]
    assert "if remote_peer is not None and" in inspect.getsource(PatternXX.handshake_outbound)
    assert parameters(Swarm.close_peer) == ["self", "peer_id"]
    assert parameters(Swarm.remove_conn) == ["self", "swarm_conn"]
    assert parameters(Swarm.set_resource_manager)[:2] == ["self", "resource_manager"]
    assert parameters(Swarm.set_stream_handler) == ["self", "stream_handler"]
    assert parameters(SwarmConn._cleanup) == ["self"]
    assert parameters(basic_host.update_peerstore_from_identify)[:3] == ["peerstore", "peer_id", "identify_msg"] or (  # type: ignore[attr-defined]
        basic_host.update_peerstore_from_identify.__module__ == "p2pnode.host.opening"  # type: ignore[attr-defined]
    )
    assert parameters(YamuxStream._auto_tune_and_send_window_update)[1] == "bytes_read"
    assert parameters(Yamux.read_stream)[:3] == ["self", "stream_id", "n"]


async def test_the_swarm_has_what_opening_sets() -> None:
    async with open_host(DIALS, [], stack="library") as host:
        swarm = host.swarm
        # An attribute that the library no longer reads could be set without effect: these come from its own __init__.
        source = inspect.getsource(Swarm)
        for name in ("upgrader", "retry_config", "auto_connector", "_inbound_limiter", "common_stream_handler"):
            assert f"self.{name}" in source, name
            assert hasattr(swarm, name), name
        assert "await self.upgrade_inbound_raw_conn(raw_conn, maddr)" in source
        assert type(swarm.upgrader) is TransportUpgrader
        assert isinstance(swarm.retry_config, RetryConfig)
        assert swarm.retry_config.max_retries == 0
        assert isinstance(swarm._inbound_limiter, trio.CapacityLimiter)
        assert swarm.upgrader.security_multistream.transports.keys() == {"/noise"}
        assert swarm.upgrader.muxer_multistream.transports.keys() == {"/yamux/1.0.0"}
    async with open_host(DIALS, []) as host:
        assert type(host.swarm.upgrader) is FusingUpgrader


async def test_the_librarys_connection_and_stream_hold_what_the_lanes_look_for() -> None:
    async with open_host(LISTENS, ["/ip4/127.0.0.1/tcp/0"]) as host, open_host(DIALS, []) as other:
        peer = await other.dial(host.addrs()[0])
        (connection,) = other.swarm.get_connections()
        assert isinstance(connection, SwarmConn)
        muxed = connection.muxed_conn
        assert isinstance(muxed, FusedConnection)
        # The hook by which the library hears that the connection ended.
        assert muxed.on_close == connection._on_muxed_conn_closed
        stream = await connection.new_stream()
        assert isinstance(stream, NetStream)
        assert stream.muxed_stream.muxed_conn is muxed
        assert peer in other.links()
