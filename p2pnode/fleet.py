"""Many sidecars on one machine, for demos and tests: real processes that can be killed one by one.

libp2p is imported once, in the parent; the children are forked from it before any event
loop or thread runs, so the imports, most of a sidecar's start, are paid once and the memory is shared.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from p2pnode.config import Loaded, load_settings
from p2pnode.errors import EnvironmentFault, Fault, InvalidRequest, P2PNodeError
from p2pnode.local.address import parse_api_address
from p2pnode.local.http import Client

START_SECONDS = 120.0
STOP_SECONDS = 8.0
POLL_SECONDS = 0.1
MAX_NODES = 1000
SKILLS = (
    "task_coordination",
    "general_development",
    "security_review",
    "testing",
    "documentation",
    "data_engineering",
)
"""Each agent has two of them, by its number: so each skill is had by a third of the agents."""

Say = Callable[[str], None]


@dataclass(slots=True)
class FleetNode:
    """One sidecar of the fleet, as `fleet.json` shows it."""

    name: str
    role: str
    data_dir: Path
    api: str
    argv: list[str]
    bootstrap: bool = False
    pid: int = 0
    peer_id: str = ""
    multiaddrs: list[str] = field(default_factory=list)
    pidfd: int = -1

    @property
    def client(self) -> Client:
        return Client(parse_api_address(self.api))

    def document(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "role": self.role,
            "pid": self.pid,
            "peer_id": self.peer_id,
            "api": self.api,
            "multiaddrs": self.multiaddrs,
            "data_dir": str(self.data_dir),
            "bootstrap": self.bootstrap,
            "argv": self.argv,
        }


class Interrupted(Exception):
    """SIGINT or SIGTERM reached the parent."""


class Fleet:
    """The processes of a fleet. Made by `open_fleet`."""

    def __init__(self, directory: Path, say: Say, wake: socket.socket, write_end: int, read_end: int) -> None:
        self.directory = directory
        self.nodes: list[FleetNode] = []
        self._say = say
        self._wake = wake
        self._write_end = write_end
        self._read_end = read_end
        self._auto_claim = False

    def start(self, agents: int, orchestrators: int, *, auto_claim: bool = False) -> None:
        """Start all, the first one as bootstrap of the others, and wait until every node sees every node.

        Args:
            auto_claim: the sidecars of agents have `SKILLS`, and claim council roles that fit them.

        Raises:
            EnvironmentFault: a node ended, or they did not find each other in time.
        """
        plan = [("whoosh", number + 1) for number in range(orchestrators)]
        plan += [("chorus", number + 1) for number in range(agents)]
        width = len(str(max(agents, orchestrators)))
        self._auto_claim = auto_claim
        self._write(ready=False)
        first = self._fork(*plan[0], width, bootstrap=[])
        first.bootstrap = True
        self._wait_for_api(first)
        for role, number in plan[1:]:
            self._fork(role, number, width, bootstrap=first.multiaddrs[:1])
        for node in self.nodes[1:]:
            self._wait_for_api(node)
        self._write(ready=False)
        self._wait_until_complete()
        self._write(ready=True)

    def watch(self) -> None:
        """Tell of every node that ends; returns when none is left.

        Raises:
            Interrupted: by Ctrl-C or SIGTERM.
        """
        while any(node.pidfd >= 0 for node in self.nodes):
            self.wait(None)
        self._say("no node is left")

    def stop(self) -> None:
        """SIGTERM to all, SIGKILL to those who are still there after eight seconds."""
        for node in self.nodes:
            self._signal(node, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while any(node.pidfd >= 0 for node in self.nodes) and time.monotonic() < deadline:
            self._reap(deadline - time.monotonic())
        for node in self.nodes:
            self._signal(node, signal.SIGKILL)
        while any(node.pidfd >= 0 for node in self.nodes):
            self._reap(1.0)

    def kill(self, node: FleetNode) -> None:
        """SIGKILL: it is gone without a word."""
        self._signal(node, signal.SIGKILL)

    def _signal(self, node: FleetNode, number: signal.Signals) -> None:
        if node.pidfd >= 0:
            signal.pidfd_send_signal(node.pidfd, number)

    def _fork(self, role: str, number: int, width: int, *, bootstrap: Sequence[str]) -> FleetNode:
        name = f"{role}-{number:0{width}d}"
        data_dir = self.directory / name
        api = f"unix:{data_dir / 'api.sock'}"
        flags: dict[str, object] = {
            "--role": role,
            "--name": name,
            "--data-dir": str(data_dir),
            "--listen": ["/ip4/127.0.0.1/tcp/0"],
            "--bootstrap": list(bootstrap),
            "--discovery": "static",
            "--api": [api],
            "--log-format": "json",
        }
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        config = None
        if self._auto_claim and role == "chorus":
            config = data_dir / "p2pnode.toml"
            skills = [SKILLS[number % len(SKILLS)], SKILLS[(number + 1) % len(SKILLS)]]
            lines = ("[agent]", f'id = "agent-{number}"', f"capabilities = {json.dumps(skills)}", "auto_claim = true")
            config.write_text("\n".join(lines) + "\n", encoding="utf-8")
        loaded = load_settings({key: value for key, value in flags.items() if value}, {}, config)
        node = FleetNode(name, role, data_dir, api, _argv({**flags, **({"--config": str(config)} if config else {})}))
        sys.stdout.flush()
        sys.stderr.flush()
        node.pid = os.fork()
        if node.pid == 0:
            self._become(node, loaded)
        node.pidfd = os.pidfd_open(node.pid)
        self.nodes.append(node)
        return node

    def _become(self, node: FleetNode, loaded: Loaded) -> None:
        """The child's whole life: nothing of the parent's clean-up may run in it."""
        code = 2
        try:
            os.setpgid(0, 0)  # Ctrl-C is for the parent, which stops us in order
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            os.close(self._write_end)
            self._wake.close()
            log = os.open(node.data_dir / "node.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            null = os.open(os.devnull, os.O_RDONLY)
            os.dup2(null, 0)
            os.dup2(log, 1)
            os.dup2(log, 2)
            from p2pnode.app import run_sidecar

            code = run_sidecar(loaded, parent=self._read_end)
        except P2PNodeError as error:
            sys.stderr.write(f"error: {error}\n")
            code = error.exit_code
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    def _wait_for_api(self, node: FleetNode) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            document = self.ask(node, "/api/v1/node")
            if document is not None:
                break
            if node.pidfd < 0:
                raise EnvironmentFault(f"{node.name} ended at its start", hint=f"see {node.data_dir / 'node.log'}")
            if time.monotonic() > deadline:
                raise EnvironmentFault(
                    f"{node.name} did not answer in {START_SECONDS:g} s", hint=f"see {node.data_dir / 'node.log'}"
                )
            self.wait(POLL_SECONDS)
        node.peer_id = document["peer_id"]
        node.multiaddrs = document["multiaddrs"]
        # Started again by itself, a node must come back to the address others know.
        listen = [addr.rpartition("/p2p/")[0] for addr in node.multiaddrs]
        node.argv = _with_listen(node.argv, listen)

    def _wait_until_complete(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        waiting = list(self.nodes)
        while waiting:
            node = waiting[-1]
            document = self.ask(node, "/api/v1/node")
            if document is not None and document["members"].get("alive", 0) >= len(self.nodes):
                waiting.pop()
                continue
            if time.monotonic() > deadline:
                seen = document["members"] if document else "no answer"
                raise EnvironmentFault(
                    f"after {START_SECONDS:g} s {node.name} does not see all {len(self.nodes)} nodes: {seen}",
                    hint=f"see {node.data_dir / 'node.log'}",
                )
            self.wait(POLL_SECONDS)

    def ask(self, node: FleetNode, path: str) -> Any:
        try:
            return node.client.get_json(path)
        except P2PNodeError:
            return None

    def wait(self, seconds: float | None) -> None:
        """Sleep, but wake for a signal or for a node that ends.

        Raises:
            Interrupted: by a signal.
        """
        poll = select.poll()
        poll.register(self._wake.fileno(), select.POLLIN)
        for node in self.nodes:
            if node.pidfd >= 0:
                poll.register(node.pidfd, select.POLLIN)
        for descriptor, _ in poll.poll(None if seconds is None else seconds * 1000):
            if descriptor == self._wake.fileno():
                self._wake.recv(64)
                raise Interrupted
            ended = next(node for node in self.nodes if node.pidfd == descriptor)
            self._say(f"{ended.name} (pid {ended.pid}) ended: {_how(self._bury(ended))}")

    def _reap(self, seconds: float) -> None:
        poll = select.poll()
        for node in self.nodes:
            if node.pidfd >= 0:
                poll.register(node.pidfd, select.POLLIN)
        for descriptor, _ in poll.poll(max(seconds, 0) * 1000):
            self._bury(next(node for node in self.nodes if node.pidfd == descriptor))

    def _bury(self, node: FleetNode) -> int:
        _, status = os.waitpid(node.pid, 0)
        os.close(node.pidfd)
        node.pidfd = -1
        return os.waitstatus_to_exitcode(status)

    def _write(self, *, ready: bool) -> None:
        scratch = self.directory / ".fleet.json.new"
        document = {"ready": ready, "nodes": [node.document() for node in self.nodes]}
        scratch.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        os.replace(scratch, self.directory / "fleet.json")


@contextmanager
def open_fleet(directory: Path, say: Say, kind: type[Fleet] = Fleet) -> Iterator[Fleet]:
    """A fleet to start; all its processes are gone when the block ends.

    Raises:
        EnvironmentFault: the directory cannot be used.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentFault(f"cannot use the directory {directory}: {error.strerror}") from error
    # What the children need is imported before the fork, and shared by it.
    import p2pnode.app

    del p2pnode
    gc.collect()
    # A child's first full collection would write to each object, and so make most of the memory its own.
    gc.freeze()
    read_end, write_end = os.pipe()
    wake, waker = socket.socketpair()
    waker.setblocking(False)
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    wakeup = signal.set_wakeup_fd(waker.fileno())
    fleet = kind(directory, say, wake, write_end, read_end)
    try:
        yield fleet
    finally:
        fleet.stop()
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        for sock in (wake, waker):
            sock.close()
        os.close(write_end)
        os.close(read_end)
        gc.unfreeze()


def run_fleet(agents: int, orchestrators: int, directory: Path | None, say: Say) -> int:
    """Start a fleet, say when it is complete, and keep it until Ctrl-C.

    Args:
        say: takes one line for people.

    Raises:
        InvalidRequest: no node, or more than a machine can take.
        EnvironmentFault: it did not start.
    """
    check_size(agents, orchestrators)
    where = (directory or Path(tempfile.mkdtemp(prefix="p2pnode-fleet-"))).absolute()
    start = time.monotonic()
    with open_fleet(where, say) as fleet:
        try:
            fleet.start(agents, orchestrators, auto_claim=True)
            count = len(fleet.nodes)
            say(
                f"{count} of {count} nodes see all {count}, after {time.monotonic() - start:.1f} s;"
                f" {where / 'fleet.json'} lists them; Ctrl-C stops all"
            )
            fleet.watch()
        except Interrupted:
            say("stopping")
            return 0
    return 2


def check_size(agents: int, orchestrators: int) -> None:
    if agents + orchestrators < 1:
        raise InvalidRequest("a fleet needs at least one node", [Fault("--agents", "0, and --orchestrators as well")])
    if agents + orchestrators > MAX_NODES:
        raise InvalidRequest(
            "the fleet is too large for one machine", [Fault("--agents", f"at most {MAX_NODES} nodes in all")]
        )


def _argv(flags: dict[str, object]) -> list[str]:
    argv = [sys.executable, "-m", "p2pnode", "run"]
    for flag, value in flags.items():
        for item in value if isinstance(value, list) else [value]:
            argv += [flag, str(item)]
    return argv


def _with_listen(argv: Sequence[str], listen: Sequence[str]) -> list[str]:
    at = argv.index("--listen")
    rest = list(argv[:at]) + list(argv[at + 2 :])
    for addr in listen:
        rest += ["--listen", addr]
    return rest


def _how(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
