"""A plain NATS agent as a process of its own, and what tests ask of bridges."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.e2e.harness import Node, wait_until

UCXL = "ucxl://any:architect@e2e:review/*^/"


class PlainAgent:
    """A process of `tests.e2e.plain_agent`, and what it read."""

    def __init__(self, process: subprocess.Popen[bytes], path: Path) -> None:
        self._process = process
        self._path = path

    def read(self) -> list[dict[str, Any]]:
        """All lines that it printed."""
        assert self._process.poll() is None, "the plain agent ended"
        lines = self._path.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def heard(self, subject: str) -> list[dict[str, Any]]:
        return [each for each in self.read() if each.get("subject") == subject]

    def publish(self, subject: str, body: object, headers: Mapping[str, str] | None = None) -> None:
        """`body`: text as it is, else as JSON."""
        text = body if isinstance(body, str) else json.dumps(body)
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"subject": subject, "body": text, "headers": headers}).encode() + b"\n")
        self._process.stdin.flush()


@contextmanager
def plain_agent(directory: Path, url: str, *arguments: str, within: Sequence[str] = ()) -> Iterator[PlainAgent]:
    """Connected and subscribed when the block begins; `arguments` as `tests.e2e.plain_agent` takes them."""
    path = directory / "plain.out"
    with open(path, "wb") as output:
        process = subprocess.Popen(
            [*within, sys.executable, "-m", "tests.e2e.plain_agent", url, *arguments],
            stdin=subprocess.PIPE,
            stdout=output,
        )
    try:
        agent = PlainAgent(process, path)
        wait_until("the plain agent is subscribed", agent.read)
        yield agent
    finally:
        process.kill()
        process.communicate()


def bridge_document(bridge: Node) -> Any:
    """What `p2pnode bridge status` shows."""
    return bridge.get("/api/v1/bridge")


def reads(bridge: Node) -> bool:
    """Is it connected, and does it read every subject?"""
    document = bridge_document(bridge)
    return bool(document["broker"]["connected"] and document["imports"])


def sees(node: Node, count: int) -> bool:
    """Does it show so many alive, itself among them?"""
    return [peer["state"] for peer in node.get("/api/v1/peers")].count("alive") == count


def create_council(node: Node, *core_roles: object) -> str:
    document = {
        "project_name": "e2e",
        "repository": "https://gitea.example/e2e",
        "ucxl_address": UCXL,
        "core_roles": core_roles,
    }
    response = node.client.request(
        "POST",
        "/api/v1/councils",
        body=json.dumps(document).encode(),
        headers={"Content-Type": "application/json"},
        timeout_seconds=30,
    )
    assert response.status == 202, response
    return str(response.json()["council_id"])
