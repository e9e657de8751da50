"""The peers of earlier runs on disk: found again, bounded, and no reason not to start."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from p2pnode.core.peerid import PeerId
from p2pnode.errors import EnvironmentFault
from p2pnode.identity import Identity
from p2pnode.store.peers import MAX_ADDRS, MAX_FILE_BYTES, PeersFile

ALICE, BOB = (Identity(letter * 32).peer_id for letter in (b"a", b"b"))
PEERS = {BOB: ("/ip4/10.0.0.2/tcp/1", "/ip6/fd00::2/tcp/1"), ALICE: ("/dns4/alice/tcp/9000",)}


async def test_saved_peers_are_found_again_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    assert PeersFile(path).load() == {}
    for peers in (PEERS, {ALICE: ("/ip4/10.0.0.1/tcp/1",)}, PEERS):
        await PeersFile(path).save(peers)
        assert list(PeersFile(path).load().items()) == list(peers.items())
    assert os.listdir(tmp_path) == ["peers.json"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"7",
        b"{}",
        b'{"peers": []}',
        b'{"peers": {"nobody": ["/ip4/10.0.0.1/tcp/1"]}}',
        json.dumps({"peers": {ALICE: 7}}).encode(),
        b"\xff",
        b"[" * 100_000,
        b" " * (MAX_FILE_BYTES + 1),
    ],
)
async def test_a_damaged_file_is_logged_and_written_anew(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "peers.json"
    path.write_bytes(content)
    assert PeersFile(path).load() == {}
    assert [record.getMessage() for record in caplog.records] == ["known peers not read; starting without"]
    await PeersFile(path).save(PEERS)
    assert PeersFile(path).load() == PEERS


def test_what_cannot_be_opened_is_no_reason_not_to_start(tmp_path: Path) -> None:
    assert PeersFile(tmp_path).load() == {}


async def test_whatever_addresses_others_have_the_file_can_be_read_again(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    many = {Identity(bytes([n]) * 32).peer_id: tuple(f"{n}{'ü' * 250}" for n in range(40)) for n in range(64)}
    await PeersFile(path).save(many)
    assert path.stat().st_size <= MAX_FILE_BYTES
    loaded = PeersFile(path).load()
    assert 5 <= len(loaded) < 64
    assert list(loaded) == list(many)[: len(loaded)], "the first ones are kept"
    assert {len(addrs) for addrs in loaded.values()} == {MAX_ADDRS}


async def test_a_file_that_cannot_be_written_is_told_and_the_old_one_stands(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    await PeersFile(path).save(PEERS)
    (tmp_path / "peers.json.new").mkdir()
    with pytest.raises(EnvironmentFault, match="cannot write"):
        await PeersFile(path).save({PeerId(ALICE): ()})
    assert PeersFile(path).load() == PEERS
