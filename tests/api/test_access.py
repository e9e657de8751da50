"""Rules of who may ask over TCP: token, Host, Origin."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from p2pnode.api.gate import canonical_host, host_name
from p2pnode.api.server import open_api
from p2pnode.errors import InvalidRequest
from p2pnode.local.address import TcpAddress, UnixAddress
from tests.api.fake import (
    DEADLINE_SECONDS,
    EVERYWHERE,
    LOOPBACK,
    FakeSidecar,
    port_of,
    read_all,
    serving,
    tcp_client,
    unix_client,
)

TOKEN = "s3cret-token"


async def test_a_listener_off_loopback_without_token_is_refused_before_anything_opens(
    sidecar: FakeSidecar, tmp_path: Path
) -> None:
    path = tmp_path / "api.sock"
    with pytest.raises(InvalidRequest) as caught:
        async with open_api(sidecar, [UnixAddress(str(path)), EVERYWHERE, TcpAddress("::", 0)]):
            pass
    assert [fault.field for fault in caught.value.faults] == ["tcp:0.0.0.0:0", "tcp:[::]:0"]
    assert "api.token_file" in caught.value.faults[0].problem
    assert not path.exists()


@pytest.mark.parametrize("token", ["", "two words", "line\n", "schlüssel"])
async def test_an_unusable_token_is_refused(sidecar: FakeSidecar, token: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        async with open_api(sidecar, [LOOPBACK], token=token):
            pass
    assert [fault.field for fault in caught.value.faults] == ["api.token_file"]


async def test_loopback_without_token_set_asks_for_none(sidecar: FakeSidecar) -> None:
    async with open_api(sidecar, [LOOPBACK]) as api, tcp_client(api) as client:
        assert (await client.get("/api/v1/node")).status_code == 200


@pytest.mark.parametrize("address", [LOOPBACK, EVERYWHERE])
async def test_with_a_token_set_every_tcp_listener_asks_for_it(sidecar: FakeSidecar, address: TcpAddress) -> None:
    async with open_api(sidecar, [address], token=TOKEN) as api, tcp_client(api) as client:
        for wrong in (None, "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer", TOKEN):
            headers = {} if wrong is None else {"Authorization": wrong}
            answer = await client.get("/api/v1/node", headers=headers)
            assert answer.status_code == 401
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")
            assert answer.json()["type"] == "urn:p2pnode:problem:unauthorized"
        for right in (f"Bearer {TOKEN}", f"bearer {TOKEN}"):
            assert (await client.get("/api/v1/node", headers={"Authorization": right})).status_code == 200


async def test_two_authorizations_are_none(sidecar: FakeSidecar) -> None:
    async with open_api(sidecar, [LOOPBACK], token=TOKEN) as api, tcp_client(api) as client:
        headers = [("Authorization", f"Bearer {TOKEN}"), ("Authorization", "Bearer other")]
        assert (await client.get("/metrics", headers=headers)).status_code == 401


async def test_probes_are_open_without_token_and_nothing_else_is(sidecar: FakeSidecar) -> None:
    async with open_api(sidecar, [LOOPBACK], token=TOKEN) as api, tcp_client(api) as client:
        for path in ("/health", "/ready"):
            assert (await client.get(path)).status_code == 200
        for path in ("/", "/metrics", "/api/v1/peers", "/nowhere", "/health/", "/%68ealth", "//health"):
            assert (await client.get(path)).status_code == 401


async def test_the_unix_socket_never_asks_for_a_token(sidecar: FakeSidecar, tmp_path: Path) -> None:
    path = str(tmp_path / "api.sock")
    async with open_api(sidecar, [UnixAddress(path)], token=TOKEN), unix_client(path) as client:
        assert (await client.get("/api/v1/node")).status_code == 200


async def test_a_refused_publication_reaches_nobody(sidecar: FakeSidecar) -> None:
    async with open_api(sidecar, [LOOPBACK], token=TOKEN) as api, tcp_client(api) as client:
        assert (await client.post("/api/v1/topics/t/messages", content=b"x" * 100_000)).status_code == 401
    assert sidecar.publications == []


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:9", "[::1]", "[::1]:80", "node.example", "node.example:5"],
)
async def test_hosts_of_this_machine_and_allowed_ones_pass(sidecar: FakeSidecar, host: str) -> None:
    async with open_api(sidecar, [LOOPBACK], allowed_hosts=["Node.Example"]) as api, tcp_client(api) as client:
        assert (await client.get("/health", headers={"Host": host})).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "evil.example:8080", "10.1.2.3", "", "a b", "[::2]", "localhost@x"],
)
async def test_a_foreign_host_gets_a_problem_document(sidecar: FakeSidecar, host: str) -> None:
    async with open_api(sidecar, [LOOPBACK]) as api, tcp_client(api) as client:
        answer = await client.get("/health", headers={"Host": host})
        assert answer.status_code == 421
        assert answer.json()["type"] == "urn:p2pnode:problem:misdirected-request"
        assert "allowed hosts" in answer.json()["hint"]


async def test_the_address_a_client_came_in_on_is_a_good_host(sidecar: FakeSidecar) -> None:
    async with open_api(sidecar, [EVERYWHERE], token=TOKEN) as api:
        with trio.fail_after(DEADLINE_SECONDS):
            stream = await trio.open_tcp_stream("127.0.0.2", port_of(api))
            async with stream:
                await stream.send_all(b"GET /health HTTP/1.1\r\nHost: 127.0.0.2\r\nConnection: close\r\n\r\n")
                assert (await read_all(stream)).startswith(b"HTTP/1.1 200")


async def test_a_request_without_host_is_refused_over_tcp_and_served_over_unix(
    sidecar: FakeSidecar, tmp_path: Path
) -> None:
    request = b"GET /health HTTP/1.0\r\n\r\n"
    async with serving(sidecar, tmp_path) as served, open_api(sidecar, [LOOPBACK]) as api:
        async with await trio.open_tcp_stream("127.0.0.1", port_of(api)) as stream:
            await stream.send_all(request)
            assert (await read_all(stream)).startswith(b"HTTP/1.1 421")
        async with await served.connect() as stream:
            await stream.send_all(request)
            assert (await read_all(stream)).startswith(b"HTTP/1.1 200")


async def test_a_foreign_web_page_cannot_publish(sidecar: FakeSidecar) -> None:
    async with open_api(sidecar, [LOOPBACK]) as api, tcp_client(api) as client:
        for origin in ("http://evil.example", "null", "http://127.0.0.1:1", "http://localhost"):
            answer = await client.post("/api/v1/topics/t/messages", content=b"x", headers={"Origin": origin})
            assert answer.status_code == 403
            assert answer.json()["type"] == "urn:p2pnode:problem:cross-origin"
        own = {"Origin": f"http://127.0.0.1:{port_of(api)}"}
        assert (await client.post("/api/v1/topics/t/messages", content=b"x", headers=own)).status_code == 202
    assert len(sidecar.publications) == 1


async def test_an_allowed_host_that_is_none_is_refused(sidecar: FakeSidecar) -> None:
    with pytest.raises(InvalidRequest) as caught:
        async with open_api(sidecar, [LOOPBACK], allowed_hosts=["*", "https://x"]):
            pass
    assert len(caught.value.faults) == 2


def test_one_address_has_one_spelling() -> None:
    assert host_name("[0:0:0:0:0:0:0:1]:80") == "::1"
    assert canonical_host("fe80::1%eth0") == "fe80::1"
    assert host_name("a/b") is None
