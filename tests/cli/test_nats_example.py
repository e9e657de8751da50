"""The NATS agent of the documentation, as its readers run it: a real server, plain JSON, no p2pnode anywhere."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from p2pnode.core.council.documents import check_claim, check_status

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "nats_agent.py"
SAMPLE = ROOT / "tests" / "samples" / "opportunity.json"
SERVER = Path(sys.executable).parent / "nats-server"
DEADLINE_SECONDS = 60.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A NATS server on loopback without JetStream; its URL."""
    arguments = [str(SERVER), "--addr", "127.0.0.1", "--port", "-1", "--ports_file_dir", str(tmp_path)]
    with subprocess.Popen(arguments, stderr=subprocess.DEVNULL) as process:
        try:
            yield _url(tmp_path)
        finally:
            process.terminate()


def _url(directory: Path) -> str:
    give_up = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < give_up:
        for file in directory.glob("nats-server_*.ports"):
            try:
                url: str = json.loads(file.read_text())["nats"][0]
            except ValueError:
                continue  # it is being written
            return url
        time.sleep(0.02)
    raise AssertionError("the server did not say where it listens")


def test_the_page_shows_the_agent_as_it_is() -> None:
    assert f"```python\n{EXAMPLE.read_text()}```\n" in (ROOT / "docs" / "bridge.md").read_text()


@pytest.mark.parametrize("form", ["objects", "names"])
def test_it_claims_the_role_takes_it_up_and_reports(server: str, form: str) -> None:
    council = json.loads(SAMPLE.read_text())
    if form == "names":  # as Go writes no optional roles, and as the API takes a role by its name
        council |= {"core_roles": ["tpm", "security-expert"], "optional_roles": None}
    council_id = council["council_id"]

    async def story() -> list[dict[str, Any]]:
        said: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue()

        async def hear(message: Msg) -> None:
            said.put_nowait((message.subject, json.loads(message.data)))

        broker = await nats.connect(server)
        try:
            await broker.subscribe(f"chorus.councils.{council_id}.*", cb=hear)
            _, claim = await _until_it_listens(broker, council, said)
            seat: dict[str, Any] = {"role_name": "security-expert", "agent_id": "nats-7", "peer_id": "12D3KooWimport"}
            seat |= {"state": "assigned", "term": 1, "n": 4}
            decision = {"council_id": council_id, "status": "forming", "term": 1, "n": 4, "roles": [seat]}
            await broker.publish(f"chorus.councils.{council_id}.status", json.dumps(decision).encode())
            found = [claim]
            while len(found) < 3:
                _, document = await said.get()
                # Our own decision comes back too, and claims of opportunities that were repeated.
                if document != decision and document != claim:
                    found.append(document)
            return found
        finally:
            await broker.close()

    command = [sys.executable, "-W", "error", str(EXAMPLE)]
    with subprocess.Popen(command, env={**os.environ, "NATS_URL": server, "CHORUS_AGENT_ID": "nats-7"}) as agent:
        try:
            claim, accept, report = asyncio.run(asyncio.wait_for(story(), DEADLINE_SECONDS))
        finally:
            agent.terminate()
    who = {"council_id": council_id, "role_name": "security-expert", "agent_id": "nats-7"}
    assert claim == {**who, "capabilities": ["security_review"]}
    assert accept == {**who, "kind": "accept", "term": 1, "n": 4}
    assert report == {**who, "status": "forming", "message": "at work"}
    assert not isinstance(check_claim(claim), list)
    assert not isinstance(check_claim(accept), list)
    checked = check_status(report)
    assert not isinstance(checked, list)
    assert not checked.is_decision


async def _until_it_listens(
    broker: Client, council: dict[str, Any], said: asyncio.Queue[tuple[str, dict[str, Any]]]
) -> tuple[str, dict[str, Any]]:
    """Core NATS keeps nothing for who subscribes later: announce until somebody answers."""
    while True:
        await broker.publish("chorus.councils.forming", json.dumps(council).encode())
        try:
            return await asyncio.wait_for(said.get(), 0.1)
        except TimeoutError:
            continue
