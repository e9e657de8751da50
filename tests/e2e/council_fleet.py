"""Sidecars that form councils, and an ear at each of them: every council document that a node showed, in order."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from p2pnode.local.http import Response
from tests.e2e.harness import DEADLINE_SECONDS, Node, environment, start_node, stop, wait_until
from tests.programs import program

COUNCILS = "/api/v1/councils"
TOPICS = ("councils.forming", "councils.claims", "councils.status")
RECONNECT_SECONDS = 0.05

Document = dict[str, Any]


def role(document: Document, name: str) -> Document:
    """One role of a council."""
    [found] = [each for each in document["roles"] if each["role_name"] == name]
    return dict(found)


def holders(document: Document) -> dict[str, tuple[str, str, int, int]]:
    """Of each role that is held: peer id, agent id, and the assignment's fencing number."""
    return {
        each["role_name"]: (each["peer_id"], each["agent_id"], each["term"], each["n"])
        for each in document["roles"]
        if each["state"] != "open"
    }


def is_formed(document: Document) -> bool:
    """Is it active, and does somebody hold each core role?"""
    return document["status"] == "active" and not document["missing"]


def _agree(documents: Iterable[Document]) -> bool:
    """Do they name the same holders?"""
    found = [holders(document) for document in documents]
    return all(each == found[0] for each in found)


class Watch:
    """Follows the councils of nodes, each by an event stream of its own, from start to `close`.

    Attributes:
        told: what each node showed: its name and a council's document, in the order of coming here.
    """

    def __init__(self) -> None:
        self.told: list[tuple[str, Document]] = []
        self._latest: dict[str, dict[str, Document]] = {}
        self._news = threading.Condition()
        self._closed = threading.Event()
        self._sockets: dict[str, socket.socket] = {}
        self._threads: list[threading.Thread] = []

    def follow(self, node: Node) -> None:
        """Also over the node's restarts."""
        thread = threading.Thread(target=self._run, args=(node.name, node.api.removeprefix("unix:")))
        self._threads.append(thread)
        thread.start()

    def close(self) -> None:
        with self._news:
            self._closed.set()
            for sock in self._sockets.values():
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def _run(self, name: str, path: str) -> None:
        while not self._closed.is_set():
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock, suppress(OSError):
                sock.connect(path)
                with self._news:
                    if self._closed.is_set():
                        return
                    self._sockets[name] = sock
                sock.sendall(b"GET /api/v1/councils/events HTTP/1.0\r\nHost: localhost\r\n\r\n")
                with sock.makefile("rb") as lines:
                    for line in lines:
                        if line.startswith(b"data:") and line.endswith(b"\n"):
                            self._note(name, json.loads(line[5:]))
            with self._news:
                self._sockets.pop(name, None)
                self._latest.pop(name, None)
            self._closed.wait(RECONNECT_SECONDS)

    def _note(self, name: str, document: Document) -> None:
        with self._news:
            self.told.append((name, document))
            self._latest.setdefault(name, {})[document["council_id"]] = document
            self._news.notify_all()

    def wait(
        self,
        what: str,
        names: Iterable[str],
        council_id: str,
        holds: Callable[[Document], bool],
        seconds: float = DEADLINE_SECONDS,
    ) -> dict[str, Document]:
        """The council as each named node shows it, once it is so at all of them, and all name the same holders."""
        names = list(names)

        def found() -> dict[str, Document]:
            shown = {name: self._latest.get(name, {}).get(council_id) for name in names}
            return {name: each for name, each in shown.items() if each is not None and holds(each)}

        deadline = time.monotonic() + seconds
        with self._news:
            while len(here := found()) < len(names) or not _agree(here.values()):
                left = deadline - time.monotonic()
                if left <= 0:
                    shown = {name: self._latest.get(name, {}).get(council_id) for name in names}
                    raise AssertionError(f"not within {seconds:g} s: {what}; so at {sorted(here)}: {shown}")
                self._news.wait(left)
        return here

    def shown(self, council_id: str) -> list[tuple[str, Document]]:
        """All that was shown of a council: by whom, and the document."""
        with self._news:
            return [(name, document) for name, document in self.told if document["council_id"] == council_id]

    def faults(self) -> list[str]:
        """A role with two holders in one document, or a fencing number that names different holders."""
        with self._news:
            told = list(self.told)
        found, known = [], dict[tuple[str, str, int, int], tuple[str, str]]()
        for name, document in told:
            names = [each["role_name"] for each in document["roles"]]
            if len(names) != len(set(names)):
                found.append(f"{name} shows a role twice: {names}")
            for role_name, (peer, agent, term, n) in holders(document).items():
                fence = (document["council_id"], role_name, term, n)
                if known.setdefault(fence, (peer, agent)) != (peer, agent):
                    found.append(f"{name}: {fence} is held by {(peer, agent)}, elsewhere by {known[fence]}")
        return found

    def hands(self, council_id: str) -> dict[tuple[str, str], list[str]]:
        """By node and role: the peer ids of the holders that it showed, each as often as the role came to it."""
        found: dict[tuple[str, str], list[str]] = {}
        for name, document in self.shown(council_id):
            for role_name, (peer, *_) in holders(document).items():
                passed = found.setdefault((name, role_name), [])
                if not passed or passed[-1] != peer:
                    passed.append(peer)
        return found


@dataclass(frozen=True)
class Place:
    """How a node of a fleet is started.

    Args:
        name: of the node; one that begins with `whoosh` is an orchestrator.
        settings: variables of its environment.
        flags: more flags; with `--bootstrap` among them it joins by those addresses, else by a node that runs already.
        within: see `harness.start_node`.
    """

    name: str
    settings: Mapping[str, str] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    within: tuple[str, ...] = ()


class CouncilFleet:
    """Made by `open_council_fleet`; `watch` is at every node from the beginning."""

    def __init__(self, directory: Path, places: Sequence[Place]) -> None:
        self.nodes: dict[str, Node] = {}
        self.peer_ids: dict[str, str] = {}
        self.watch = Watch()
        self._directory = directory
        self._places = {place.name: place for place in places}

    @property
    def names(self) -> list[str]:
        """Of all nodes, orchestrators first."""
        return sorted(self._places, key=lambda name: (not name.startswith("whoosh"), name))

    @property
    def agents(self) -> list[str]:
        return [name for name in self.names if not name.startswith("whoosh")]

    def name_of(self, peer_id: str) -> str:
        [name] = [name for name, each in self.peer_ids.items() if each == peer_id]
        return name

    def start(self, name: str) -> None:
        """Without waiting for it."""
        place = self._places[name]
        others = [node for other, node in self.nodes.items() if other != name and _runs(node)]
        flags = [*place.flags, "--role", "whoosh" if name.startswith("whoosh") else "chorus", "--no-mdns"]
        if others and "--bootstrap" not in flags:
            flags += ["--bootstrap", others[0].bootstrap]
        env = environment(self._directory / "run", **place.settings)
        self.nodes[name] = start_node(self._directory, name, *flags, env=env, within=place.within)

    def kill(self, name: str) -> None:
        """SIGKILL; returns when the process is gone."""
        stop(self.nodes[name], signal.SIGKILL)

    def open(self) -> None:
        """Start all, and wait until all see all and every topic of councils has a mesh."""
        first, *others = self._places
        self.start(first)
        wait_until(f"{first} answers", self.nodes[first].answers)
        for name in others:
            self.start(name)
        for name, node in self.nodes.items():
            document = wait_until(f"{name} answers", node.answers)
            self.peer_ids[name] = document["peer_id"]
            self.watch.follow(node)
        self.wait_for_states(self.names, self.names, "alive")
        for name in self.names:
            wait_until(f"{name} has a mesh for each topic", lambda name=name: self._has_meshes(name))  # type: ignore[misc]

    def close(self) -> None:
        self.watch.close()
        for node in self.nodes.values():
            assert node.process is not None
            if _runs(node):
                node.process.send_signal(signal.SIGTERM)
        for node in self.nodes.values():
            stop(node)

    def _has_meshes(self, name: str) -> bool:
        topics = {each["topic"] for each in self.nodes[name].get("/api/v1/topics") if each["mesh"]}
        return topics.issuperset(TOPICS)

    def wait_for_states(self, at: Iterable[str], about: Iterable[str], state: str) -> None:
        """Until nodes say of others that they are `alive` or `dead`."""
        wanted = {self.peer_ids[name] for name in about}

        def agrees(name: str) -> bool:
            peers = self.nodes[name].get("/api/v1/peers") if self.nodes[name].answers() else []
            return wanted <= {peer["peer_id"] for peer in peers if peer["state"] == state}

        for name in at:
            wait_until(f"{name} says {state} of all", lambda name=name: agrees(name))  # type: ignore[misc]

    # -- asked -------------------------------------------------------------------------

    def post(self, name: str, path: str, document: object) -> Response:
        """What `path` of one node's API answers."""
        headers = {"Content-Type": "application/json"}
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        return self.nodes[name].client.request("POST", path, body=body, headers=headers, timeout_seconds=30)

    def create(self, name: str, *core_roles: str | Document, **members: object) -> str:
        """A council's id, once the node said 202."""
        document = {"project_name": "e2e", "repository": "https://gitea.example/e2e", "core_roles": core_roles}
        response = self.post(name, COUNCILS, {**document, **members})
        assert response.status == 202, response
        return str(response.json()["council_id"])

    def curl(self, name: str, path: str, data: str) -> tuple[int, Document]:
        """The status and the document that curl gets for a POST; `data` as curl takes it."""
        found = program("curl")
        assert found is not None, "curl is missing: run `python -m tests.programs`"
        where = ("--unix-socket", self.nodes[name].api.removeprefix("unix:"), f"http://localhost{path}")
        command = (found, "--silent", "--show-error", "--max-time", "60", "--write-out", "\n%{http_code}", *where)
        body = ("--header", "Content-Type: application/json", "--data", data)
        done = subprocess.run([*command, *body], capture_output=True, check=True)
        answer, _, status = done.stdout.decode().rpartition("\n")
        return int(status), json.loads(answer)

    def claim(self, name: str, council_id: str, role_name: str) -> Response:
        return self.post(name, f"{COUNCILS}/{council_id}/claims", {"role_name": role_name})

    def report(self, name: str, council_id: str, status: str, **members: object) -> Response:
        return self.post(name, f"{COUNCILS}/{council_id}/status", {"status": status, **members})

    def everywhere(self, what: str, council_id: str, holds: Callable[[Document], bool]) -> Document:
        """The council, once it is so at every node, with the same holders at all."""
        return self.watch.wait(what, self.names, council_id, holds)[self.names[0]]

    def given(self, name: str, council_id: str, role_name: str) -> Document:
        """The role, claimed by one agent while it is open, once every node shows that this agent accepted it."""
        self.everywhere("it is known", council_id, bool)
        response = self.claim(name, council_id, role_name)
        assert response.status == 202, response
        peer = self.peer_ids[name]

        def is_held(document: Document) -> bool:
            found = role(document, role_name)
            return (found["peer_id"], found["state"]) == (peer, "accepted")

        return role(self.everywhere(f"{name} holds {role_name}", council_id, is_held), role_name)


def _runs(node: Node) -> bool:
    return node.process is not None and node.process.poll() is None


@contextmanager
def open_council_fleet(directory: Path, places: Sequence[Place]) -> Iterator[CouncilFleet]:
    """A fleet that sees itself whole; the first place is the others' bootstrap, unless they name one."""
    fleet = CouncilFleet(directory, places)
    try:
        fleet.open()
        yield fleet
    finally:
        fleet.close()
