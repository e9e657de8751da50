"""The agents of the how-tos, as their readers run them, beside a sidecar that tells of one council."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.fake_councils import COUNCILS, ID, ONE, agent, council, event, role
from tests.local.fake import Answer, FakeSidecar, Request, document_answer

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
AGENTS = {
    "python": [sys.executable, "-W", "error", str(EXAMPLES / "council_agent.py")],
    "shell": ["sh", str(EXAMPLES / "council-agent.sh"), "review", "sh", "-c", 'echo "working as $ROLE"'],
}
NAME = 'security "expert"\nof sorts'
"""Whatever an orchestrator calls a role, it is data."""


def open_council(**members: Any) -> dict[str, Any]:
    return council(role(NAME, required_skills=["review"]), role("tpm", required_skills=["planning"]), **members)


class Story:
    """A sidecar whose council goes on as its agent claims and reports."""

    def __init__(self, sidecar: FakeSidecar) -> None:
        self._sidecar = sidecar
        self.claimed, self.reported = threading.Event(), threading.Event()
        self.said: dict[str, list[Any]] = {"claims": [], "status": []}
        sidecar.serves("/api/v1/agent", agent("a"))
        sidecar.on("POST", f"{ONE}/claims", self._claim)
        sidecar.on("POST", f"{ONE}/status", self._report)
        answer = Answer(self._events(), 200, {"Content-Type": "text/event-stream"}, "chunked")
        sidecar.on("GET", f"{COUNCILS}/events", answer)

    def _events(self) -> Iterator[bytes]:
        yield b"retry: 1000\n\n"
        yield event(open_council()).encode()
        self.claimed.wait()
        held = role(NAME, "a", required_skills=["review"])
        yield event(open_council(n=2)).encode()
        yield event(council(held, role("tpm"), mine=[NAME])).encode()
        active = council(held, role("tpm", "b"), mine=[NAME], status="active", n=4)
        yield event(active).encode()
        yield event({**active, "n": 5}).encode()
        self._sidecar.stop.wait()

    def _claim(self, request: Request) -> Answer:
        self.said["claims"].append(json.loads(request.body))
        self.claimed.set()
        return document_answer({"id": "12D3KooWa-1", "council_id": ID, "role_name": NAME, "agent_id": "a"}, 202)

    def _report(self, request: Request) -> Answer:
        self.said["status"].append(json.loads(request.body))
        self.reported.set()
        return document_answer({"id": "12D3KooWa-2", "council_id": ID, "status": "completed"}, 202)


@pytest.mark.parametrize("kind", AGENTS)
def test_an_agent_claims_what_fits_works_when_it_is_active_and_reports(sidecar: FakeSidecar, kind: str) -> None:
    story = Story(sidecar)
    environment = {**os.environ, "P2PNODE_API": sidecar.api}
    with subprocess.Popen(
        AGENTS[kind], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        try:
            assert story.claimed.wait(60)
            assert story.reported.wait(60)
        finally:
            os.killpg(process.pid, 9)
            out, err = process.communicate()
            story.claimed.set()
    assert err == b""
    assert b"working as " in out
    assert [each["role_name"] for each in story.said["claims"]] == [NAME]
    (report,) = story.said["status"]
    assert {name: report[name] for name in ("status", "role_name", "term", "n")} == {
        "status": "completed",
        "role_name": NAME,
        "term": 1,
        "n": 2,
    }
