"""Publishing: what goes out, what is tried again, and what is raised."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from p2pnode.client import NotASidecar, Published
from p2pnode.errors import (
    CallerError,
    Fault,
    InvalidRequest,
    NoSidecar,
    PayloadTooLarge,
    StorageFull,
    TooBusy,
    Unavailable,
)
from tests.client.flavours import Connect, Scenario
from tests.client.server import Request, Script, accepted, answer, serving

# httpcore 1.0 leaves a Unix socket that did not connect to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

Run = Callable[[Scenario], None]
MESSAGES = "/api/v1/topics/t/messages"


def script(*answers: bytes) -> Script:
    """One answer after the other; the last one again and again."""
    left = list(answers)

    def say(_request: Request) -> Iterator[bytes]:
        yield left.pop(0) if len(left) > 1 else left[0]

    return say


@pytest.mark.parametrize(
    ("payload", "body", "content_type"),
    [
        ({"a": "ü\ud800"}, b'{"a":"\\u00fc\\ud800"}', "application/json"),
        ("grüezi", "grüezi".encode(), "text/plain; charset=utf-8"),
        (b"\x00\xff", b"\x00\xff", "application/octet-stream"),
    ],
)
def test_a_payload_goes_out_with_its_type_and_headers(
    run: Run, tmp_path: Path, payload: object, body: bytes, content_type: str
) -> None:
    async def scenario(connect: Connect) -> None:
        async with connect(server.api) as client:
            sent = await client.publish("t", payload, headers={"Council-ID": "Zürich"}, idempotency_key="mine")
            assert sent == Published("origin-7", 7)

    with serving(tmp_path, script(accepted())) as server:
        run(scenario)
        (request,) = server.requests
        assert (request.method, request.path, request.body) == ("POST", MESSAGES, body)
        assert request.headers["content-type"] == content_type
        assert request.headers["idempotency-key"] == "mine"
        assert request.headers["p2p-council-id"].encode("latin-1").decode() == "Zürich"


def test_a_slash_in_a_topic_is_escaped(run: Run, tmp_path: Path) -> None:
    async def scenario(connect: Connect) -> None:
        async with connect(server.api) as client:
            await client.publish("a/b?c", b"")

    with serving(tmp_path, script(accepted())) as server:
        run(scenario)
        assert server.requests[0].path == "/api/v1/topics/a%2Fb%3Fc/messages"


@pytest.mark.parametrize(
    "refusal",
    [
        pytest.param(answer(429, {"detail": "too fast"}, "Retry-After: 1"), id="429"),
        pytest.param(answer(503, {"reason": "no-peers"}), id="503"),
        pytest.param(answer(500, {}), id="500"),
        pytest.param(b"", id="closed without an answer"),
        pytest.param(accepted()[:-5], id="closed within the answer"),
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n\r\n", id="garbage"),
        pytest.param(b"HTTP/1.1 202 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", id="a bad chunk"),
    ],
)
def test_what_may_pass_is_tried_again_with_the_same_key(run: Run, tmp_path: Path, refusal: bytes) -> None:
    async def scenario(connect: Connect) -> None:
        async with connect(server.api) as client:
            assert await client.publish("t", {}) == Published("origin-7", 7, duplicate=True)

    with serving(tmp_path, script(refusal, refusal, accepted(duplicate=True))) as server:
        run(scenario)
        keys = [request.headers["idempotency-key"] for request in server.requests]
        assert len(keys) == 3
        assert len(set(keys)) == 1


def test_each_call_has_a_key_of_its_own(run: Run, tmp_path: Path) -> None:
    async def scenario(connect: Connect) -> None:
        async with connect(server.api) as client:
            await client.publish("t", {})
            await client.publish("t", {})

    with serving(tmp_path, script(accepted())) as server:
        run(scenario)
        first, second = (request.headers["idempotency-key"] for request in server.requests)
        assert first != second


def test_a_sidecar_that_is_not_there_yet_is_waited_for(run: Run, tmp_path: Path) -> None:
    async def scenario(connect: Connect) -> None:
        async with connect(server.api) as client:
            server.stop()
            with pytest.raises(NoSidecar, match="no sidecar answers at unix:"):
                await client.publish("t", {}, timeout=0.2)
            server.start_again()
            assert (await client.publish("t", {})).id == "origin-7"

    with serving(tmp_path, script(accepted())) as server:
        run(scenario)


@pytest.mark.parametrize(
    ("refusal", "error"),
    [
        pytest.param(answer(429, {}, "Retry-After: 1"), TooBusy, id="429"),
        pytest.param(answer(503, {"reason": "no-peers"}), Unavailable, id="503"),
        pytest.param(b"", NoSidecar, id="closed"),
    ],
)
def test_at_the_timeout_the_last_error_is_raised(
    run: Run, tmp_path: Path, refusal: bytes, error: type[Exception]
) -> None:
    async def scenario(connect: Connect) -> None:
        async with connect(server.api, timeout=0.3) as client:
            with pytest.raises(error):
                await client.publish("t", {})

    with serving(tmp_path, script(refusal)) as server:
        run(scenario)


def test_a_sidecar_that_never_answers_is_given_up(run: Run, tmp_path: Path) -> None:
    def hang(request: Request) -> Iterator[bytes]:
        yield b"HTTP/1.1 202 OK\r\nContent-Length: 10\r\n\r\n"
        request.gone.wait()

    async def scenario(connect: Connect) -> None:
        async with connect(server.api) as client:
            with pytest.raises(NoSidecar):
                await client.publish("t", {}, timeout=0.3)

    with serving(tmp_path, hang) as server:
        run(scenario)


def test_an_answer_that_trickles_is_given_up(run: Run, tmp_path: Path) -> None:
    def trickle(request: Request) -> Iterator[bytes]:
        yield b"HTTP/1.1 202 OK\r\nContent-Length: 100000\r\n\r\n"
        while not request.gone.wait(0.05):
            yield b"x"

    async def scenario(connect: Connect) -> None:
        async with connect(server.api) as client:
            with pytest.raises(NoSidecar, match="not complete in time"):
                await client.publish("t", {}, timeout=0.3)

    with serving(tmp_path, trickle) as server:
        run(scenario)


@pytest.mark.parametrize(
    ("refusal", "error"),
    [
        pytest.param(answer(401, {"detail": "a token is needed"}), CallerError, id="401"),
        pytest.param(answer(413, {}), PayloadTooLarge, id="413"),
        pytest.param(answer(507, {}), StorageFull, id="507"),
        pytest.param(answer(302, {}, "Location: /"), NotASidecar, id="302"),
        pytest.param(answer(202, ["what?"]), NotASidecar, id="no id"),
        pytest.param(answer(202, {"id": "x", "seqno": "many"}), NotASidecar, id="no number"),
        pytest.param(b"HTTP/1.1 202 OK\r\nContent-Length: 4\r\n\r\n[[[[", NotASidecar, id="no JSON"),
    ],
)
def test_what_will_not_pass_is_raised_at_once(run: Run, tmp_path: Path, refusal: bytes, error: type[Exception]) -> None:
    async def scenario(connect: Connect) -> None:
        async with connect(server.api) as client:
            with pytest.raises(error):
                await client.publish("t", {})

    with serving(tmp_path, script(refusal)) as server:
        run(scenario)
        assert len(server.requests) == 1


def test_a_422_names_each_field(run: Run, tmp_path: Path) -> None:
    problem = {"detail": "no", "errors": [{"field": "topic", "problem": "is empty"}, "?", {"field": "b"}]}

    async def scenario(connect: Connect) -> None:
        async with connect(server.api) as client:
            with pytest.raises(InvalidRequest) as caught:
                await client.publish("t", {})
            assert caught.value.faults == (Fault("topic", "is empty"), Fault("b", "-"))

    with serving(tmp_path, script(answer(422, problem))) as server:
        run(scenario)


@pytest.mark.parametrize(
    ("payload", "options", "field"),
    [
        ({"a": float("inf")}, {}, "payload"),
        ({"a": object()}, {}, "payload"),
        ("\ud800", {}, "payload"),
        (b"", {"headers": {"bad name": "x"}}, "bad name"),
        (b"", {"headers": {"Name": "a\r\nX: y"}}, "Name"),
        (b"", {"idempotency_key": "a\n"}, "Idempotency-Key"),
        (b"", {"idempotency_key": "ü"}, "Idempotency-Key"),
        (b"", {"content_type": "text/plain\r\n"}, "Content-Type"),
    ],
)
def test_what_cannot_be_sent_names_the_field(
    run: Run, tmp_path: Path, payload: object, options: dict[str, object], field: str
) -> None:
    async def scenario(connect: Connect) -> None:
        async with connect(server.api) as client:
            with pytest.raises(InvalidRequest) as caught:
                await client.publish("t", payload, **options)
            assert [fault.field for fault in caught.value.faults] == [field]

    with serving(tmp_path, script(accepted())) as server:
        run(scenario)
        assert server.requests == []


def test_questions_are_answered_with_documents(run: Run, tmp_path: Path) -> None:
    documents = {"/api/v1/peers": (200, [{"a": 1}]), "/api/v1/node": (200, {"b": 2}), "/ready": (503, {"status": "x"})}

    def say(request: Request) -> Iterator[bytes]:
        yield answer(*documents[request.path])

    async def scenario(connect: Connect) -> None:
        async with connect(server.api) as client:
            found = [await client.get(what) for what in ("peers", "node", "health")]
            assert found == [document for _, document in documents.values()]

    with serving(tmp_path, say) as server:
        run(scenario)


@pytest.mark.parametrize("what", ["peers", "node"])
def test_another_document_than_asked_for_is_refused(run: Run, tmp_path: Path, what: str) -> None:
    async def scenario(connect: Connect) -> None:
        async with connect(server.api) as client:
            with pytest.raises(NotASidecar):
                await client.get(what)

    with serving(tmp_path, script(answer(200, "neither"))) as server:
        run(scenario)


def test_the_address_comes_from_the_environment(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(connect: Connect) -> None:
        async with connect() as client:
            assert (await client.publish("t", {})).id == "origin-7"

    with serving(tmp_path, script(accepted())) as server:
        monkeypatch.setenv("P2PNODE_API", server.api)
        run(scenario)


@pytest.mark.parametrize("api", [None, "http://localhost", "unix:", "tcp:127.0.0.1"])
def test_a_missing_or_wrong_address_says_what_to_write(run: Run, api: str | None) -> None:
    async def scenario(connect: Connect) -> None:
        with pytest.raises(CallerError) as caught:
            async with connect(api):
                pass
        assert "unix:PATH" in str(caught.value) or "tcp:" in str(caught.value)

    run(scenario)


def test_the_token_comes_from_its_file(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("secret\n")
    monkeypatch.setenv("P2PNODE_API_TOKEN_FILE", str(tmp_path / "token"))

    async def scenario(connect: Connect) -> None:
        async with connect(server.api) as client:
            await client.publish("t", {})
        async with connect(server.api, token="other") as client:
            await client.publish("t", {})

    with serving(tmp_path, script(accepted())) as server:
        run(scenario)
        assert [each.headers["authorization"] for each in server.requests] == ["Bearer secret", "Bearer other"]


@pytest.mark.parametrize("content", [None, b"two words", b"\xff"])
def test_a_token_file_that_cannot_be_used_is_said(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "token").write_bytes(content)
    monkeypatch.setenv("P2PNODE_API_TOKEN_FILE", str(tmp_path / "token"))

    async def scenario(connect: Connect) -> None:
        with pytest.raises(CallerError, match="token"):
            async with connect(f"unix:{tmp_path}/x"):
                pass

    run(scenario)
