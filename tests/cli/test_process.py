"""Commands as processes: terminals, pipes, signals, imports."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping

import pytest

from tests.cli.documents import member, message_event, node
from tests.cli.running import Registry, command, p2pnode
from tests.local.fake import Answer, FakeSidecar, document_answer

EVENTS_PATH = "/api/v1/topics/councils.forming/events"


def on_a_terminal(*arguments: str, env: Mapping[str, str] | None = None) -> str:
    """Standard output of a command whose standard output is a terminal."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command(*arguments), stdout=theirs, stderr=subprocess.PIPE, env={**os.environ, "TERM": "xterm", **(env or {})}
    ) as process:
        os.close(theirs)
        parts = []
        try:
            while part := os.read(ours, 65536):
                parts.append(part)
        except OSError:
            pass  # Linux tells the end of a terminal by EIO
        process.wait(30)
    os.close(ours)
    return b"".join(parts).decode().replace("\r\n", "\n")


@pytest.fixture
def answering(sidecar: FakeSidecar) -> FakeSidecar:
    sidecar.serves("/api/v1/peers", [member("a"), member("b", state="dead", rtt_ms=None)])
    sidecar.serves("/api/v1/node", node())
    sidecar.serves("/api/v1/topics", [])
    sidecar.serves("/api/v1/mesh", {"nodes": [], "missing": []})
    sidecar.on("GET", "/ready", document_answer({"status": "delivering", "reasons": []}))
    sidecar.serves("/api/v1/carriers", {"degraded": False})
    sidecar.on("PATCH", "/api/v1/carriers", document_answer({"degraded": False}))
    sidecar.serves("/api/v1/bridge", {"broker": {"connected": True}})
    return sidecar


@pytest.mark.parametrize(
    "name", ["peers", "id", "status", "topics", "mesh", "carriers", "carriers set rollback=nats", "bridge status"]
)
def test_asking_commands_import_nothing_heavy(answering: FakeSidecar, registry: Registry, name: str) -> None:
    registry("whoosh-1", "whoosh", answering.api)
    script = (
        "import sys\n"
        "from p2pnode.cli.main import main\n"
        f"assert main({name.split()!r}) == 0\n"
        "print(*sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stderr.split())
    heavy = {"trio", "libp2p", "nats", "pydantic", "rich", "asyncio", "starlette", "hypercorn", "cryptography", "nacl"}
    heavy |= {"http.client", "urllib.request", "importlib.metadata", "logging", "ssl", "email"}
    assert not loaded & heavy
    assert not {module for module in loaded if module.startswith(("p2pnode.config", "p2pnode.app", "p2pnode.core"))}


def test_on_a_terminal_states_are_coloured(answering: FakeSidecar) -> None:
    out = on_a_terminal("peers", "--api", answering.api)
    assert "\x1b[32malive" in out
    assert "\x1b[31mdead" in out


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_color_is_honoured_on_a_terminal(answering: FakeSidecar, env: Mapping[str, str]) -> None:
    out = on_a_terminal("peers", "--api", answering.api, env=env)
    assert "\x1b" not in out
    assert out.startswith("NAME")


def test_an_empty_no_color_means_nothing(answering: FakeSidecar) -> None:
    assert "\x1b" in on_a_terminal("peers", "--api", answering.api, env={"NO_COLOR": ""})


def test_in_a_pipe_the_same_text_comes_without_colour(answering: FakeSidecar) -> None:
    piped = p2pnode("peers", "--api", answering.api)
    assert piped.stderr == ""
    seen = on_a_terminal("peers", "--api", answering.api, env={"NO_COLOR": "1"})
    assert [line.split()[:6] for line in piped.stdout.splitlines()] == [line.split()[:6] for line in seen.splitlines()]


def test_on_a_terminal_a_message_is_one_readable_line(sidecar: FakeSidecar) -> None:
    binary = {"payload": "AP8=", "encoding": "base64", "content_type": "application/octet-stream"}
    text = {"payload": "YRtbMkpiCg==", "encoding": "base64", "content_type": "text/plain"}
    long = {"payload": {"text": "x" * 5000}}
    parts = [message_event(1), message_event(2, **binary), message_event(3, **text), message_event(4, long["payload"])]
    sidecar.on(
        "GET", EVENTS_PATH, Answer([part.encode() for part in parts], 200, {"Content-Type": "text/event-stream"})
    )
    out = on_a_terminal(
        "sub", "councils.forming", "--count", "4", "--api", sidecar.api, env={"NO_COLOR": "1", "TZ": "UTC"}
    )
    lines = out.splitlines()
    assert lines[:3] == [
        '12:00:00.123 chorus-1 councils.forming gossip 1 {"number":1}',
        "12:00:00.123 chorus-1 councils.forming gossip 2 (2 bytes of application/octet-stream)",
        "12:00:00.123 chorus-1 councils.forming gossip 3 a\\x1b[2Jb",
    ]
    assert lines[3].endswith("… (5011 bytes; -o jsonl shows all)")


def test_a_reader_that_leaves_is_no_error(answering: FakeSidecar) -> None:
    answering.serves("/api/v1/peers", [member(f"n{number}") for number in range(2000)])
    with subprocess.Popen(
        command("peers", "-o", "jsonl", "--api", answering.api), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 141


def test_a_reader_that_left_before_the_first_line_is_no_error(answering: FakeSidecar) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as closed:
        done = subprocess.run(
            command("id", "--api", answering.api), stdout=closed, stderr=subprocess.PIPE, timeout=30, check=False
        )
    assert (done.returncode, done.stderr) == (141, b"")


def test_ctrl_c_ends_a_follower_with_130_and_no_traceback(sidecar: FakeSidecar) -> None:
    def body() -> Iterator[bytes]:
        yield message_event(1).encode()
        sidecar.stop.wait()

    answer = Answer(body(), 200, {"Content-Type": "text/event-stream"}, "chunked")
    sidecar.on("GET", EVENTS_PATH, answer)
    with subprocess.Popen(
        command("sub", "councils.forming", "--api", sidecar.api), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["seqno"] == "1"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert b"Traceback" not in process.stderr.read()


def test_output_survives_a_locale_without_unicode(answering: FakeSidecar) -> None:
    answering.serves("/api/v1/peers", [member("é")])
    done = p2pnode("peers", "--api", answering.api, env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert done.returncode == 0
    assert "\\xe9" in done.stdout
