"""Drives foreign libp2p peers, each a process of its own, through the control protocol of `control.py`.

    async with open_peer("js", "--do-px") as js, open_peer("kubo") as kubo:
        await js.subscribe("topic")
        await js.dial(kubo.addrs[0])

`python -m tests.interop.peers install` installs all kinds; `open_peer` installs its own kind if need be.
"""

import base64
import json
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import IO, Any

import trio

from tests.interop.installation import INSTALLED, KINDS, InstallationFailed, Kind, command, install

__all__ = [
    "INSTALLED",
    "KINDS",
    "CommandFailed",
    "ForeignPeer",
    "InstallationFailed",
    "Kind",
    "Message",
    "PeerFailed",
    "Stats",
    "install",
    "open_peer",
    "wait_until",
]

DEADLINE_SECONDS = 60.0
GRACE_SECONDS = 10.0  # from the end of stdin to a kill
POLL_SECONDS = 0.05
READ_BYTES = 65536
STDERR_TAIL_BYTES = 4000


class PeerFailed(Exception):
    """The peer's process ended or never became ready; the text closes with the end of its stderr."""


class CommandFailed(Exception):
    """The peer answered a command with an error."""


@dataclass(frozen=True, slots=True)
class Message:
    """A gossip message as a foreign peer delivered it.

    `received_at` is in unix seconds (kubo's is late by up to 20 ms: its library is polled); `via` is the forwarding
    peer, known only to js.
    """

    topic: str
    author: str
    seqno: int
    data: bytes
    received_at: float
    via: str | None


@dataclass(frozen=True, slots=True)
class Stats:
    """Resident bytes now and CPU seconds (user and system) since the start of the peer's process."""

    rss_bytes: int
    cpu_seconds: float


class ForeignPeer:
    """A running peer. Commands may overlap; the peer takes them one by one and answers in their order.

    `messages` grows without bound for the life of the peer; a caller may clear it.
    """

    def __init__(self, kind: Kind, process: trio.Process, stderr: IO[bytes]) -> None:
        self.kind = kind
        self.peer_id = ""
        self.addrs: list[str] = []
        self.messages: list[Message] = []
        self._process = process
        self._stderr = stderr
        self._ended = False
        self._changed = trio.Event()
        self._send_lock = trio.Lock()
        self._answers: deque[_Answer] = deque()

    @property
    def pid(self) -> int:
        return self._process.pid

    async def dial(self, addr: str) -> None:
        """Connects to a multiaddr that ends in `/p2p/<peer id>`.

        Raises:
            CommandFailed: no connection. go and kubo refuse to try that peer again for some seconds.
        """
        await self._request({"cmd": "dial", "addr": addr})

    async def subscribe(self, topic: str) -> None:
        await self._request({"cmd": "subscribe", "topic": topic})

    async def publish(self, topic: str, data: bytes) -> None:
        """Signs and publishes.

        Raises:
            CommandFailed: also if a js peer knows no subscriber; go and kubo publish to nobody without complaint.
        """
        await self._request({"cmd": "publish", "topic": topic, "data_b64": base64.b64encode(data).decode()})

    async def peers(self) -> frozenset[str]:
        """Connected peers; of a go peer those that speak pubsub."""
        return frozenset((await self._request({"cmd": "peers"}))["peers"])

    async def topic_peers(self, topic: str) -> frozenset[str]:
        """Peers this one knows to be subscribed."""
        return frozenset((await self._request({"cmd": "topic_peers", "topic": topic}))["peers"])

    async def mesh(self, topic: str) -> frozenset[str] | None:
        """Peers in the topic's mesh; None from go and kubo, whose bindings do not show it."""
        peers = (await self._request({"cmd": "mesh", "topic": topic}))["peers"]
        return None if peers is None else frozenset(peers)

    async def streams(self, peer_id: str) -> frozenset[tuple[str, str]] | None:
        """Open pubsub streams with a peer as (`inbound` or `outbound`, protocol); None from go and kubo."""
        streams = (await self._request({"cmd": "streams", "peer": peer_id}))["streams"]
        return None if streams is None else frozenset((direction, protocol) for direction, protocol in streams)

    async def discovered(self) -> frozenset[str]:
        """Addresses that multicast DNS found, with `/p2p/<peer id>`.

        Raises:
            CommandFailed: by all but js. kubo dials whom it finds, and `peers` tells.
        """
        return frozenset((await self._request({"cmd": "discovered"}))["addrs"])

    async def serve_echo(self, protocols: Sequence[str]) -> None:
        """Sends back what comes on streams of these protocols; kubo's must begin with `/x/`."""
        await self._request({"cmd": "serve_echo", "protocols": list(protocols)})

    async def echo(self, peer_id: str, protocols: Sequence[str], *, streams: int, size: int) -> int:
        """Opens so many streams to a connected peer at once; on how many of them `size` random bytes came back."""
        request = {"cmd": "echo", "peer": peer_id, "protocols": list(protocols), "streams": streams, "bytes": size}
        return int((await self._request(request))["equal"])

    async def stats(self) -> Stats:
        answer = await self._request({"cmd": "stats"})
        return Stats(rss_bytes=answer["rss_bytes"], cpu_seconds=answer["cpu_seconds"])

    async def wait_for_messages(
        self, count: int, timeout_s: float = DEADLINE_SECONDS, where: Callable[[Message], bool] | None = None
    ) -> list[Message]:
        """Returns the messages, or those that satisfy `where`, once there are at least `count`.

        Raises:
            TimeoutError: there were fewer after `timeout_s` seconds.
            PeerFailed: the peer ended first.
        """
        found: list[Message] = []
        with trio.move_on_after(timeout_s):
            while True:
                found = [message for message in self.messages if where is None or where(message)]
                if len(found) >= count:
                    return found
                await self._change()
        raise TimeoutError(f"{self.kind} has {len(found)} of {count} messages after {timeout_s} s")

    async def _request(self, request: Mapping[str, object]) -> dict[str, Any]:
        answer = _Answer()
        line = json.dumps(request).encode() + b"\n"
        with trio.fail_after(DEADLINE_SECONDS):
            async with self._send_lock:
                self._require_running()
                self._answers.append(answer)
                await self._send(line)
            while answer.value is None:
                await self._change()
        if "error" in answer.value:
            raise CommandFailed(f"{self.kind} {request['cmd']}: {answer.value['error']}")
        return answer.value

    async def _send(self, line: bytes) -> None:
        assert self._process.stdin is not None
        try:
            # A line cut in half would garble every later command.
            with trio.fail_after(DEADLINE_SECONDS) as scope:
                scope.shield = True
                await self._process.stdin.send_all(line)
        except trio.BrokenResourceError as error:
            raise self._failure() from error

    async def _change(self) -> None:
        self._require_running()
        await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _require_running(self) -> None:
        if self._ended:
            raise self._failure()

    def _failure(self) -> PeerFailed:
        size = self._stderr.seek(0, 2)
        self._stderr.seek(max(0, size - STDERR_TAIL_BYTES))
        return PeerFailed(f"{self.kind} peer ended\n{self._stderr.read().decode(errors='replace')}")

    async def _ready(self) -> None:
        with trio.move_on_after(DEADLINE_SECONDS):
            while not self.peer_id:
                await self._change()
        if not self.peer_id:
            raise PeerFailed(f"{self.kind} peer not ready after {DEADLINE_SECONDS} s")

    async def _read(self) -> None:
        assert self._process.stdout is not None
        rest = b""
        while chunk := await self._process.stdout.receive_some(READ_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._take(json.loads(line))
            self._notify()
        self._ended = True
        self._notify()

    def _take(self, value: dict[str, Any]) -> None:
        match value.get("event"):
            case "message":
                self.messages.append(
                    Message(
                        topic=value["topic"],
                        author=value["from"],
                        seqno=int(value["seqno"], 16),
                        data=base64.b64decode(value["data_b64"]),
                        received_at=value["received_at"],
                        via=value["via"],
                    )
                )
            case "ready":
                self.peer_id, self.addrs = value["peer_id"], value["addrs"]
            case _:
                self._answers.popleft().value = value

    async def _end(self) -> None:
        assert self._process.stdin is not None
        with trio.CancelScope(shield=True):
            await self._process.stdin.aclose()
            with trio.move_on_after(GRACE_SECONDS):
                await self._process.wait()
            if self._process.returncode is None:
                self._process.kill()
                await self._process.wait()


@dataclass(slots=True)
class _Answer:
    value: dict[str, Any] | None = None


@asynccontextmanager
async def open_peer(kind: Kind, *flags: str, within: Sequence[str] = ()) -> AsyncIterator[ForeignPeer]:
    """Runs a peer on 127.0.0.1 for as long as the block lasts.

    Args:
        within: a command that runs the peer's, in a network namespace say.

    Flags: js takes `--d N` (the other degrees follow), `--do-px`, `--accept-px-threshold X`, `--no-flood-publish`;
    go takes `--key-type ed25519|rsa|secp256k1|ecdsa`; kubo has an RSA key. All but library, whose private
    networks are its own, take `--network-key HEX`. js and kubo take `--mdns ADDRESS`, to listen there instead and to
    use multicast DNS.

    Raises:
        InstallationFailed: it was not installed and could not be.
        PeerFailed: it did not become ready within 60 seconds.
    """
    await trio.to_thread.run_sync(install, kind)
    with tempfile.TemporaryFile() as stderr:
        process = await trio.lowlevel.open_process(
            [*within, *command(kind), *flags], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr
        )
        peer = ForeignPeer(kind, process, stderr)
        failure: BaseException | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(peer._read)
                try:
                    await peer._ready()
                    yield peer
                finally:
                    await peer._end()
                    nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            if len(group.exceptions) > 1:
                raise
            failure = group.exceptions[0]
        finally:
            assert process.stdout is not None
            with trio.CancelScope(shield=True):
                await process.stdout.aclose()
        if failure is not None:
            raise failure  # the nursery is our business: what the block raised leaves as the block raised it


async def wait_until(condition: Callable[[], Awaitable[bool]], what: str, timeout_s: float = DEADLINE_SECONDS) -> None:
    """Asks again and again until the condition holds.

    Raises:
        TimeoutError: it did not within `timeout_s` seconds.
    """
    with trio.move_on_after(timeout_s):
        while True:
            if await condition():
                return
            await trio.sleep(POLL_SECONDS)
    raise TimeoutError(f"not within {timeout_s} s: {what}")


def main(arguments: list[str]) -> int:
    if arguments != ["install"]:
        print("usage: python -m tests.interop.peers install", file=sys.stderr)
        return 2
    for kind in INSTALLED:
        started = time.monotonic()
        try:
            done = install(kind)
        except InstallationFailed as error:
            print(f"{kind}: {error}", file=sys.stderr)
            return 1
        print(f"{kind}: installed in {time.monotonic() - started:.1f} s" if done else f"{kind}: up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
