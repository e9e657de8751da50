"""The processes of a benchmark and the lines they are driven by.

A bench peer is a process that takes one JSON object a line on stdin and answers each with one on stdout:

| command                                                     | answer                                            |
|-------------------------------------------------------------|---------------------------------------------------|
| (none: when it listens)                                     | {"peer_id", "addr", "d"}                          |
| {"cmd": "dial", "addr"}                                     | {} once connected                                 |
| {"cmd": "subscribe", "topic"}                               | {}                                                |
| {"cmd": "state"}                                            | {"links", "topic_peers", "mesh"}: numbers or null |
| {"cmd": "load", "run", "start_ns", "size", "at": [[i, ns]]} | {} at once; sends message i at start_ns + ns      |
| {"cmd": "count", "run"}                                     | {"received", "sent"}: numbers                     |
| {"cmd": "report", "run"}                                    | {"receipts", "sent": [[i, µs]], "duplicates"}     |

A failed command is answered by {"error": text}. During a load a peer prints nothing: it records receipts in memory, and
`report` gives for each the microseconds from publishing, and for each own message how late it was published. All clocks
are CLOCK_MONOTONIC. A payload is `HEADER`, then filling. The end of stdin ends the peer.
"""

from __future__ import annotations

import json
import os
import select
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

HEADER = struct.Struct(">IIQ")
"""Run, message, nanoseconds of CLOCK_MONOTONIC at publishing."""

ANSWER_SECONDS = 60.0
STOP_SECONDS = 10.0
READ_BYTES = 1 << 16


class PeerFailed(Exception):
    """A bench peer ended, did not answer, or could not do what it was told."""


class Process(Protocol):
    """What `subprocess.Popen` and `Forked` have in common."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def kill(self) -> None: ...


class Forked:
    """A child made by `os.fork`; one that was reaped is never signalled."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._status: int | None = None

    def poll(self) -> int | None:
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
        return self._status

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


class BenchPeer:
    """The driver's end of one peer. Commands to many peers overlap: `send` to each, then `receive` from each."""

    def __init__(self, process: Process, stdin: int, stdout: int, log: Path) -> None:
        self._process = process
        self._stdin = stdin
        self._stdout = stdout
        self._log = log
        self._buffer = b""
        self.peer_id = ""
        self.addr = ""
        self.degree = 0

    @property
    def pid(self) -> int:
        return self._process.pid

    def ready(self) -> None:
        answer = self.receive()
        self.peer_id, self.addr, self.degree = answer["peer_id"], answer["addr"], answer["d"]

    def send(self, command: Mapping[str, object]) -> None:
        data = memoryview(json.dumps(command).encode() + b"\n")
        try:
            while data:
                data = data[os.write(self._stdin, data) :]
        except BrokenPipeError as error:
            raise self._failure("ended") from error

    def receive(self, seconds: float = ANSWER_SECONDS) -> dict[str, Any]:
        """The next answer.

        Raises:
            PeerFailed: an error, or none in time.
        """
        deadline = time.monotonic() + seconds
        while b"\n" not in self._buffer:
            if not select.select([self._stdout], [], [], max(deadline - time.monotonic(), 0))[0]:
                raise self._failure(f"no answer within {seconds:g} s")
            data = os.read(self._stdout, READ_BYTES)
            if not data:
                raise self._failure("ended")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise self._failure(answer["error"])
        return answer

    def ask(self, command: Mapping[str, object]) -> dict[str, Any]:
        self.send(command)
        return self.receive()

    def leave(self) -> None:
        if self._stdin >= 0:
            os.close(self._stdin)
            self._stdin = -1

    def wait(self, deadline: float) -> None:
        while self._process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        if self._process.poll() is None:
            self._process.kill()
            while self._process.poll() is None:
                time.sleep(0.01)
        os.close(self._stdout)

    def _failure(self, what: str) -> PeerFailed:
        tail = self._log.read_text(errors="replace")[-2000:] if self._log.exists() else ""
        return PeerFailed(f"peer {self.pid}: {what}\n{tail}")


def ask_all(peers: Sequence[BenchPeer], command: Mapping[str, object]) -> list[dict[str, Any]]:
    for peer in peers:
        peer.send(command)
    return [peer.receive() for peer in peers]


def stop_all(peers: Iterable[BenchPeer]) -> None:
    """End of stdin for all; who is still there after ten seconds is killed."""
    peers = list(peers)
    for peer in peers:
        peer.leave()
    deadline = time.monotonic() + STOP_SECONDS
    for peer in peers:
        peer.wait(deadline)


def execute(arguments: Sequence[str], log: Path) -> BenchPeer:
    """A peer that is a program of its own."""
    with log.open("wb") as stderr:
        process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr)
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin as stdin, process.stdout as stdout:
        return BenchPeer(process, os.dup(stdin.fileno()), os.dup(stdout.fileno()), log)


def fork(run: Callable[[], None], log: Path) -> BenchPeer:
    """A peer forked from this process, which must have neither threads nor an event loop."""
    child_in, parent_out = os.pipe()
    parent_in, child_out = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.dup2(child_in, 0)
            os.dup2(child_out, 1)
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 2)
            # Other peers' pipes too: whoever holds a write end keeps its reader from seeing the end.
            os.closerange(3, 4096)
            run()
            code = 0
        except BaseException:
            import traceback

            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(code)
    os.close(child_in)
    os.close(child_out)
    return BenchPeer(Forked(pid), parent_out, parent_in, log)
