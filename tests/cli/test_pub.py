"""`pub`: where the payload comes from, what goes with it, what comes back."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from p2pnode.cli.pub import MAX_READ_BYTES, guess_content_type
from tests.cli.running import Run
from tests.local.fake import Answer, FakeSidecar, document_answer, problem

PATH = "/api/v1/topics/councils.forming/messages"


@pytest.fixture
def pub(run: Run, sidecar: FakeSidecar) -> Run:
    sidecar.on("POST", PATH, document_answer({"id": "12D3KooWa-17", "seqno": "17"}, 202))
    return lambda *arguments: run("pub", "councils.forming", "--api", sidecar.api, *arguments)


def standard_input(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_an_argument_is_published_and_the_id_printed(pub: Run, sidecar: FakeSidecar) -> None:
    outcome = pub("grüße")
    assert (outcome.code, outcome.out, outcome.err) == (0, "12D3KooWa-17\n", "")
    assert sidecar.requests[0].body == "grüße".encode()


def test_a_file_is_published_byte_for_byte(pub: Run, sidecar: FakeSidecar, tmp_path: Path) -> None:
    (tmp_path / "payload").write_bytes(b"\x00\r\n\xff")
    assert pub("--file", str(tmp_path / "payload")).code == 0
    assert sidecar.requests[0].body == b"\x00\r\n\xff"


@pytest.mark.parametrize("arguments", [[], ["--file", "-"]])
def test_standard_input_is_published(
    pub: Run, sidecar: FakeSidecar, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    standard_input(monkeypatch, b"\x00\xff")
    assert pub(*arguments).code == 0
    assert sidecar.requests[0].body == b"\x00\xff"


def test_an_empty_argument_is_an_empty_payload(pub: Run, sidecar: FakeSidecar) -> None:
    assert pub("").code == 0
    assert sidecar.requests[0].body == b""


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b'{"a": 1}', "application/json"),
        (b" \n{}", "application/json"),
        (b"[1]", "text/plain"),
        (b"{broken", "text/plain"),
        (b"[" * 200_000, "text/plain"),
        (b"", "text/plain"),
        ("é".encode(), "text/plain"),
        (b"\xff\xfe", "application/octet-stream"),
    ],
)
def test_the_content_type_is_guessed_from_the_bytes(body: bytes, content_type: str) -> None:
    assert guess_content_type(body) == content_type


def test_what_goes_with_the_message_is_sent_as_headers(pub: Run, sidecar: FakeSidecar) -> None:
    own = ["--header", "Trace=a=b", "--header", "greeting=grüße"]
    assert pub("x", "--content-type", "text/markdown", "--idempotency-key", "k1", *own).code == 0
    headers = sidecar.requests[0].headers
    assert headers["content-type"] == "text/markdown"
    assert headers["idempotency-key"] == "k1"
    assert headers["p2p-trace"] == "a=b"
    assert headers["p2p-greeting"].encode("latin-1").decode() == "grüße"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--header", "nothing"],
        ["--header", "=v"],
        ["--header", "a b=c"],
        ["--header", "k=a\r\nHost: evil"],
        ["--header", "ü=v"],
        ["--header", "k= v"],
        ["--content-type", "é/x"],
        ["--content-type", "text/plain\nX: y"],
        ["--idempotency-key", "ü"],
        ["--file", "/nowhere/at/all"],
        ["--file", "/"],
        ["second"],
    ],
)
def test_wrong_input_is_refused_before_anything_is_sent(pub: Run, sidecar: FakeSidecar, arguments: list[str]) -> None:
    outcome = pub(*([] if arguments[0] == "--file" else ["x"]), *arguments)
    assert outcome.code == 64
    assert outcome.err.startswith("error: ")
    assert sidecar.requests == []


def test_two_sources_of_the_payload_are_refused(pub: Run) -> None:
    assert pub("x", "--file", "y").code == 64


def test_a_topic_is_sent_as_one_path_segment_and_its_refusal_is_told(run: Run, sidecar: FakeSidecar) -> None:
    sidecar.on(
        "POST",
        "/api/v1/topics/a%20b%2Fc/messages",
        problem(422, "the topic is invalid", errors=[{"field": "topic", "problem": "no spaces: write a.b"}]),
    )
    outcome = run("pub", "a b/c", "x", "--api", sidecar.api)
    assert (outcome.code, outcome.out) == (64, "")
    assert outcome.err == "error: the topic is invalid\n  topic: no spaces: write a.b\n"


def test_every_field_at_fault_has_a_line_of_its_own(pub: Run, sidecar: FakeSidecar) -> None:
    faults = [{"field": "project_name", "problem": "is missing"}, {"field": "core_roles[0]", "problem": "\x1b[2J"}]
    sidecar.on("POST", PATH, problem(422, "the opportunity is invalid", errors=faults, hint="see the reference"))
    outcome = pub("{}")
    assert outcome.err.splitlines() == [
        "error: the opportunity is invalid",
        "  project_name: is missing",
        "  core_roles[0]: \\x1b[2J",
        "  see the reference",
    ]


@pytest.mark.parametrize(("status", "code"), [(413, 64), (429, 2), (503, 2), (500, 2)])
def test_a_refusal_prints_no_id(pub: Run, sidecar: FakeSidecar, status: int, code: int) -> None:
    sidecar.on("POST", PATH, problem(status, "not now", headers={"Retry-After": "7"}))
    outcome = pub("x")
    assert (outcome.code, outcome.out) == (code, "")
    assert outcome.err.startswith("error: not now\n")
    assert ("try again in 7 s" in outcome.err) == (status in (429, 503))


def test_an_answer_without_an_object_is_no_sidecars(pub: Run, sidecar: FakeSidecar) -> None:
    sidecar.on("POST", PATH, Answer(b"[]", 202))
    assert pub("x").code == 3


def test_what_is_far_too_large_is_not_even_read(pub: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    standard_input(monkeypatch, bytes(MAX_READ_BYTES + 1))
    outcome = pub()
    assert outcome.code == 64
    assert "256 KiB" in outcome.err
