"""Council commands as processes: what they import."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.cli.fake_councils import COUNCILS, EVENTS, ID, ONE, agent, council, role, stream
from tests.local.fake import FakeSidecar, document_answer


@pytest.mark.parametrize(
    "arguments",
    [
        ["council", "create", "--project", "P", "--wait", "30"],
        ["council", "list"],
        ["council", "show", ID],
        ["council", "claim", ID, "tpm"],
        ["council", "watch", ID, "--until", "active"],
        ["agent", "show"],
        ["agents"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_council_commands_import_nothing_heavy(sidecar: FakeSidecar, arguments: list[str]) -> None:
    active = council(role("tpm", "a"), status="active")
    made = {"id": "12D3KooWa-1", "council_id": ID, "role_name": "tpm", "agent_id": "a"}
    sidecar.on("POST", COUNCILS, document_answer(council(), 202))
    sidecar.on("POST", f"{ONE}/claims", document_answer(made, 202))
    sidecar.on("GET", EVENTS, stream(council(), active))
    sidecar.serves(COUNCILS, [active])
    sidecar.serves(ONE, active)
    sidecar.serves("/api/v1/agent", agent("a"))
    sidecar.serves("/api/v1/agents", [agent("a")])
    script = (
        "import sys\n"
        "from p2pnode.cli.main import main\n"
        f"assert main({[*arguments, '--api', sidecar.api]!r}) == 0\n"
        "print(*sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stderr.split())
    heavy = {
        "trio",
        "libp2p",
        "pydantic",
        "asyncio",
        "starlette",
        "cryptography",
        "httpx",
        "http.client",
        "ssl",
    }
    assert not loaded & heavy
    assert not {module for module in loaded if module.startswith(("p2pnode.config", "p2pnode.app", "p2pnode.core"))}
