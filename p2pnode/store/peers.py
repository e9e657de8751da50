"""Peers that were there, in a small file: who to try at the next start, before any bootstrap."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

import trio

from p2pnode.core.peerid import PeerId, peer_id_bytes
from p2pnode.errors import EnvironmentFault, InvalidMessage

log = logging.getLogger(__name__)

MAX_FILE_BYTES = 256 * 1024
MAX_ADDRS = 16


class PeersFile:
    """`ports.KnownPeers` as JSON: `{"peers": {"<peer id>": ["<multiaddr>", …]}}`.

    What cannot be read is no reason not to start: it is logged, and written anew. Of what is over MAX_FILE_BYTES the
    last peers are not written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> Mapping[PeerId, tuple[str, ...]]:
        try:
            if self._path.stat().st_size > MAX_FILE_BYTES:
                raise ValueError(f"over {MAX_FILE_BYTES} bytes")
            peers = json.loads(self._path.read_text("utf-8"))["peers"]
            found = {PeerId(peer): tuple(map(str, addrs))[:MAX_ADDRS] for peer, addrs in peers.items()}
            for peer in found:
                peer_id_bytes(peer)
            return found
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, InvalidMessage) as error:
            log.warning("known peers not read; starting without", extra={"path": str(self._path), "reason": str(error)})
            return {}

    async def save(self, peers: Mapping[PeerId, tuple[str, ...]]) -> None:
        fit: dict[PeerId, list[str]] = {}
        room = MAX_FILE_BYTES - 64
        for peer, addrs in peers.items():
            fit[peer] = list(addrs)[:MAX_ADDRS]
            room -= len(json.dumps({peer: fit[peer]}))
            if room < 0:
                del fit[peer]
                break
        await trio.to_thread.run_sync(self._write, json.dumps({"peers": fit}))

    def _write(self, text: str) -> None:
        scratch = self._path.with_name(self._path.name + ".new")
        try:
            scratch.write_text(text + "\n", "utf-8")
            os.replace(scratch, self._path)
        except OSError as error:
            raise EnvironmentFault(
                f"cannot write {self._path}: {error.strerror}", hint="free space there or fix its permissions"
            ) from error
