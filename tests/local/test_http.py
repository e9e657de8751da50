"""The HTTP client against a real server on a Unix socket, and against one that answers raw bytes."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from p2pnode.errors import (
    CallerError,
    Conflict,
    Degraded,
    EnvironmentFault,
    Forbidden,
    InvalidRequest,
    NoSidecar,
    PayloadTooLarge,
    TooBusy,
    Unavailable,
)
from p2pnode.local.address import UnixAddress, parse_api_address
from p2pnode.local.http import Client, NotASidecar, TimedOut, quote, refusal
from tests.local.fake import Answer, Clock, FakeSidecar, Framing, problem

RawServer = Callable[[bytes], Client]


def client_of(fake: FakeSidecar, token: str = "") -> Client:
    return Client(parse_api_address(fake.api), token)


@pytest.fixture
def raw(tmp_path: Path) -> Iterator[RawServer]:
    """A server that reads a request's head, sends the given bytes, and closes."""
    path = tmp_path / "raw.sock"
    threads = []
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def answer(data: bytes) -> None:
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as file:
            while file.readline().strip():
                pass
            connection.sendall(data)

    def start(data: bytes) -> Client:
        thread = threading.Thread(target=answer, args=(data,))
        thread.start()
        threads.append(thread)
        return Client(UnixAddress(str(path)))

    yield start
    for thread in threads:
        thread.join()
    listener.close()


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_a_body_arrives_whole_however_it_is_framed(sidecar: FakeSidecar, framing: Framing) -> None:
    parts = [b"first\r\n", b"x" * 100_000, b"", b"last"]
    sidecar.on("GET", "/x", Answer(parts, framing=framing))
    assert client_of(sidecar).request("GET", "/x").body == b"".join(parts)


def test_a_body_cut_short_is_an_error(sidecar: FakeSidecar) -> None:
    sidecar.on("GET", "/x", Answer(b"half", framing="broken"))
    with pytest.raises(NoSidecar, match="broke off"):
        client_of(sidecar).request("GET", "/x")


def test_request_carries_body_headers_and_token(sidecar: FakeSidecar) -> None:
    sidecar.on("POST", "/x", Answer(b"ok", 202))
    response = client_of(sidecar, "secret").request("POST", "/x?y=1", body=b"\x00\xff", headers={"A": "b"})
    assert (response.status, response.body) == (202, b"ok")
    (request,) = sidecar.requests
    assert (request.path, request.body, request.headers["a"]) == ("/x?y=1", b"\x00\xff", "b")
    assert request.headers["authorization"] == "Bearer secret"
    assert request.headers["host"] == "localhost"


def test_tcp_names_host_and_port_and_ipv6_in_brackets() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        port = listener.getsockname()[1]
        seen = []

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                seen.append(connection.recv(65536))
                connection.sendall(b"HTTP/1.0 200 OK\r\n\r\nfine")

        thread = threading.Thread(target=answer)
        thread.start()
        response = Client(parse_api_address(f"tcp:[::1]:{port}")).request("GET", "/")
        thread.join()
    assert response.body == b"fine"
    assert f"\r\nHost: [::1]:{port}\r\n".encode() in seen[0]


def test_interim_answers_are_skipped(raw: RawServer) -> None:
    client = raw(b"HTTP/1.1 100 Continue\r\nA: b\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n")
    response = client.request("GET", "/")
    assert (response.status, response.body) == (204, b"")


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"b" * 200_000,
    ],
)
def test_what_is_not_http_is_not_a_sidecar(raw: RawServer, data: bytes) -> None:
    client = raw(data)
    with pytest.raises(NotASidecar):
        client.request("GET", "/")


@pytest.mark.parametrize(
    "data", [b"", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab"]
)
def test_a_connection_closed_too_early_is_no_answer(raw: RawServer, data: bytes) -> None:
    client = raw(data)
    with pytest.raises(NoSidecar, match="broke off"):
        client.request("GET", "/")


def test_an_answer_that_does_not_come_in_time_is_no_answer(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "mute.sock"))
        listener.listen()
        with pytest.raises(TimedOut):
            Client(UnixAddress(str(tmp_path / "mute.sock"))).request("GET", "/", timeout_seconds=0.01)


def test_a_stream_ends_at_its_deadline_and_at_silence(sidecar: FakeSidecar, clock: Clock) -> None:
    def endless() -> Iterator[bytes]:
        yield b"one"
        sidecar.stop.wait()

    def mute() -> Iterator[bytes]:
        sidecar.stop.wait()
        yield b""

    sidecar.on("GET", "/x", lambda _: Answer(endless(), framing="chunked"))
    sidecar.on("GET", "/mute", lambda _: Answer(mute(), framing="chunked"))
    client = client_of(sidecar)
    with client.stream("/x", deadline=time.monotonic() + 60) as stream:
        assert next(stream.chunks) == b"one"
        clock.advance(60)
        with pytest.raises(TimedOut):
            next(stream.chunks)
    with client.stream("/mute", silence_seconds=0) as stream, pytest.raises(TimedOut):
        list(stream.chunks)


def test_an_early_refusal_of_a_large_body_is_still_read(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
                connection.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=answer)
        thread.start()
        response = Client(UnixAddress(str(tmp_path / "s"))).request("POST", "/", body=b"x" * 5_000_000)
        thread.join()
    assert response.status == 413


@pytest.mark.parametrize(
    ("status", "kind", "exit_code"),
    [
        (400, InvalidRequest, 64),
        (401, CallerError, 64),
        (403, Forbidden, 1),
        (404, Degraded, 1),
        (409, Conflict, 1),
        (413, PayloadTooLarge, 64),
        (422, InvalidRequest, 64),
        (429, TooBusy, 2),
        (500, EnvironmentFault, 2),
        (503, Unavailable, 2),
    ],
)
def test_a_refusal_becomes_the_error_of_whoever_erred(
    sidecar: FakeSidecar, status: int, kind: type[Exception], exit_code: int
) -> None:
    sidecar.on("GET", "/x", problem(status, "because", hint="do this"))
    error = refusal(client_of(sidecar).request("GET", "/x"))
    assert type(error) is kind
    assert (error.detail, error.exit_code) == ("because", exit_code)


def test_a_refusal_without_a_problem_document_names_the_status(sidecar: FakeSidecar) -> None:
    sidecar.on("GET", "/x", Answer(b"<html>", 502))
    assert "502" in refusal(client_of(sidecar).request("GET", "/x")).detail


def test_quote_leaves_only_unreserved_characters() -> None:
    assert quote("a b/c?#é-._~9") == "a%20b%2Fc%3F%23%C3%A9-._~9"


@pytest.mark.parametrize(("told", "reason"), [("ping", "ping"), (None, "unavailable")])
def test_a_503_keeps_its_reason(sidecar: FakeSidecar, told: str | None, reason: str) -> None:
    sidecar.on("GET", "/x", problem(503, "not now", reason=told))
    error = refusal(client_of(sidecar).request("GET", "/x"))
    assert isinstance(error, Unavailable)
    assert error.reason == reason
