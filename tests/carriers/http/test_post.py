"""Posting by HTTP: to real carriers, and to servers that answer as badly as they can."""

from __future__ import annotations

import datetime
import ipaddress
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from p2pnode.carriers.http.post import HttpPost, PostLimits
from p2pnode.carriers.http.protocol import MESSAGE_TYPE, MESSAGES_PATH
from p2pnode.carriers.http.server import open_carrier
from p2pnode.core.message import SignedMessage
from p2pnode.errors import InvalidRequest, TooBusy, Unavailable
from p2pnode.ports.roads import LegacyAgent, Post, Target
from tests.carriers.http.scripted import Asked, Behaviour, Scripted, answer, endless, hang, open_scripted, raw
from tests.node.stored import signed

MESSAGE = signed(1, 1)
KEY = b"k" * 32
PATH = "/api/v1/opportunities/council"
PROBLEM = "application/problem+json"


@pytest.fixture
async def server() -> AsyncIterator[Scripted]:
    with trio.fail_after(60):
        async with open_scripted() as opened:
            yield opened


def poster(server: Scripted | None = None, *, key: bytes = b"", limits: PostLimits | None = None) -> HttpPost:
    return HttpPost(
        network_key=key, legacy_path=PATH, health_port=server.port if server is not None else 1, limits=limits
    )


def target(server: Scripted) -> Target:
    return Target("bob", server.url)


def agent(server: Scripted) -> LegacyAgent:
    return LegacyAgent("old-7", server.url)


async def closed_port() -> int:
    """A port that nobody listens on."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port: int = listener.socket.getsockname()[1]
    await listener.aclose()
    return port


def test_it_is_the_port() -> None:
    road: Post = poster()
    assert road is not None


async def test_a_message_is_handed_over_to_a_carrier_that_shares_the_network_key() -> None:
    taken: list[SignedMessage] = []

    async def take(message: SignedMessage) -> str | None:
        taken.append(message)
        return None if len(taken) == 1 else "held"

    large = signed(1, 2, size=255 * 1024)
    async with open_carrier("127.0.0.1:0", take, for_good=(), network_key=KEY) as carrier:
        to = Target("bob", f"http://{carrier.addresses[0]}")
        post = poster(key=KEY)
        await post.hand_over(to, large)
        await post.hand_over(to, large)
        for other in (b"", b"x" * 32):
            with pytest.raises(Unavailable, match=r"bob at http.*401 .*network key") as raised:
                await poster(key=other).hand_over(to, large)
            assert raised.value.reason == "http-unauthorized"
    assert taken == [large, large]
    assert post.counters == {"stored": 1, "held": 1}


async def test_what_a_carrier_refuses_for_good_names_target_status_and_reason() -> None:
    async def take(_message: SignedMessage) -> str | None:
        return "expired"

    async with open_carrier("127.0.0.1:0", take, for_good={"expired"}) as carrier:
        post = poster()
        with pytest.raises(InvalidRequest, match=r"bob at http://127\.0\.0\.1:\d+ refuses .*422 \(expired"):
            await post.hand_over(Target("bob", f"http://{carrier.addresses[0]}"), MESSAGE)
    assert post.counters == {"refused": 1}


async def test_a_request_carries_the_raw_bytes(server: Scripted) -> None:
    await poster().hand_over(Target("bob", server.url + "/"), MESSAGE)
    (asked,) = server.asked
    assert (asked.method, asked.path, asked.body) == ("POST", MESSAGES_PATH, MESSAGE.raw)
    assert asked.headers["content-type"] == MESSAGE_TYPE
    assert asked.headers["host"] == f"127.0.0.1:{server.port}"
    assert "authorization" not in asked.headers


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (answer(429), "http-busy"),
        (answer(500, b"oops"), "http-busy"),
        (answer(503, b'{"reason": "clock"}', Content_Type=PROBLEM), "http-busy"),
        (answer(408, b"{}", Content_Type=PROBLEM), "http-timeout"),
        (answer(404, b"<html>"), "http-answer"),
        (answer(401, b"<html>"), "http-answer"),
        (answer(302, Location="http://127.0.0.1:1/"), "http-answer"),
        (answer(204), "http-answer"),
        (answer(200, b"welcome"), "http-answer"),
        (answer(200, b'{"stored": false}'), "http-answer"),
        (answer(200, b"[" * 60_000), "http-answer"),
        (answer(200, b'{"stored": true, "x": "' + b"x" * 70_000 + b'"}'), "http-answer"),
        (
            endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1000\r\n" + b"x" * 4096 + b"\r\n"),
            "http-answer",
        ),
        (endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 1000), "http-answer"),
        (endless(b"", b"HTTP/1.1 102 Processing\r\n\r\n" * 100), "http-answer"),
        (endless(b"HTTP/1.1 200 OK\r\n", b"A: a\r\n" * 1000), "http-answer"),
        (raw(b"SSH-2.0-OpenSSH_9.2\r\n"), "http-answer"),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{"), "http-answer"),
        (raw(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"), "http-answer"),
        (raw(b""), "http-answer"),
    ],
)
async def test_a_target_that_does_not_say_that_it_stored_is_unavailable(
    server: Scripted, behaviour: Behaviour, reason: str
) -> None:
    server.other = behaviour
    post = poster()
    with pytest.raises(Unavailable, match=r"^bob at http://127\.0\.0\.1:\d+") as raised:
        await post.hand_over(target(server), MESSAGE)
    assert raised.value.reason == reason
    assert post.counters == {reason: 1}
    assert len(server.asked) == 1
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize(
    ("header", "seconds"), [("17", 17.0), ("999999999999", 3600.0), ("soon", 1.0), ("-1", 1.0), ("", 1.0)]
)
async def test_retry_after_is_handed_on(server: Scripted, header: str, seconds: float) -> None:
    server.other = answer(503, Retry_After=header)
    with pytest.raises(Unavailable) as raised:
        await poster().hand_over(target(server), MESSAGE)
    assert raised.value.retry_after_seconds == seconds


async def test_a_target_that_never_answers_is_given_up(server: Scripted) -> None:
    server.other = hang
    with pytest.raises(Unavailable, match=r"bob at .*no whole answer within 0\.5 s") as raised:
        await poster(limits=PostLimits(seconds=0.5)).hand_over(target(server), MESSAGE)
    assert raised.value.reason == "http-timeout"


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "a..b"])
async def test_a_target_that_is_not_there_is_unreachable(host: str) -> None:
    port = await closed_port()
    with pytest.raises(Unavailable, match="no connection") as raised:
        await poster().hand_over(Target("bob", f"http://{host}:{port}"), MESSAGE)
    assert raised.value.reason == "http-unreachable"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "bob",
        "ftp://a:1",
        "http://:80",
        "http://a:99999",
        "http://a:0",
        "http://u:p@a:1",
        "http://a:1/?x",
        "http://a:1/#x",
        "http://a:1/ x",
        "http://a\r\nX: y:1",
        "http://\u0430:1",
        "http://[::1",
    ],
)
async def test_a_url_that_is_none_is_named(url: str) -> None:
    post = poster()
    with pytest.raises(InvalidRequest, match="is no http://HOST:PORT"):
        await post.hand_over(Target("bob", url), MESSAGE)
    assert post.counters == {"refused": 1}


async def test_eight_are_open_at_once_and_two_to_each_target_while_the_rest_is_counted_as_waiting() -> None:
    go_on = trio.Event()

    async def when_told(asked: Asked, stream: trio.abc.Stream) -> None:
        await go_on.wait()
        await answer(200, b'{"stored": true}')(asked, stream)

    with trio.fail_after(60):
        async with (
            open_scripted() as a,
            open_scripted() as b,
            open_scripted() as c,
            open_scripted() as d,
            open_scripted() as e,
        ):
            servers = (a, b, c, d, e)
            post = poster()
            async with trio.open_nursery() as nursery:
                for each in servers:
                    each.other = when_told
                    for _ in range(4):
                        nursery.start_soon(post.hand_over, target(each), MESSAGE)
                await trio.testing.wait_all_tasks_blocked()
                while sum(len(each.asked) for each in servers) < 8:  # noqa: ASYNC110
                    await trio.sleep(0.005)
                await trio.testing.wait_all_tasks_blocked(0.05)
                assert sum(len(each.asked) for each in servers) == 8
                assert post.waiting == 12
                go_on.set()
            assert post.waiting == 0
            assert post.counters == {"stored": 20}
            assert [each.most_at_once for each in servers] == [2] * 5


async def test_a_slow_target_keeps_no_other_waiting(server: Scripted) -> None:
    server.other = hang
    async with open_scripted() as other, trio.open_nursery() as nursery:
        post = poster()
        for _ in range(20):
            nursery.start_soon(post.hand_over, target(server), MESSAGE)
        await server.until_asked(2)
        await post.hand_over(target(other), MESSAGE)
        assert len(server.asked) == 2
        nursery.cancel_scope.cancel()
    assert post.waiting == 0


async def test_who_finds_too_many_waiting_is_told_so_and_a_cancelled_one_makes_room(server: Scripted) -> None:
    server.other = hang
    post = poster(limits=PostLimits(waiting=1))
    async with trio.open_nursery() as nursery:
        for each in range(2):
            nursery.start_soon(post.hand_over, target(server), MESSAGE)
            await server.until_asked(each + 1)
        waiting = trio.CancelScope()

        async def wait() -> None:
            with waiting:
                await post.hand_over(target(server), MESSAGE)

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        assert post.waiting == 1
        with pytest.raises(TooBusy, match=r"bob at .* waiting already"):
            await post.hand_over(target(server), MESSAGE)
        waiting.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert post.waiting == 0
        nursery.cancel_scope.cancel()


async def test_an_agent_is_asked_for_its_health_and_then_told(server: Scripted) -> None:
    body = json.dumps({"council_id": "c-1"}).encode()
    headers = {
        "Council-ID": "c-1",
        "Project": "Zürich",
        "content-type": "text/html",
        "Content-Length": "7",
        "Transfer-Encoding": "chunked",
        "Host": "elsewhere",
        "Split": "a\r\nX-Injected: b",
        "Bad name": "x",
        "": "x",
        "Lone": "\ud800",
    }
    server.other = answer(202)
    post = poster(server)
    await post.tell(agent(server), body, headers)
    health, told = server.asked
    assert (health.method, health.path, health.body) == ("GET", "/health", b"")
    assert (told.method, told.path, told.body) == ("POST", PATH, body)
    assert told.headers["council-id"] == "c-1"
    assert told.headers["project"].encode("utf-8", "surrogateescape").decode() == "Zürich"
    assert told.headers["content-type"] == "application/json"
    assert told.headers["host"] == f"127.0.0.1:{server.port}"
    assert not {"split", "x-injected", "bad name", "lone", "transfer-encoding"} & told.headers.keys()
    assert post.counters == {"told": 1}


async def test_a_path_that_is_not_ascii_is_escaped(server: Scripted) -> None:
    server.other = answer(200)
    await HttpPost(legacy_path="/räte/%41", health_port=server.port).tell(agent(server), b"{}", {})
    assert server.paths() == ["/health", "/r%C3%A4te/%41"]


async def test_a_healthy_agent_is_not_asked_again_within_five_seconds(server: Scripted) -> None:
    server.other = answer(200)
    post = poster(server)
    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(post.tell, agent(server), b"{}", {})
    assert sorted(server.paths()) == [PATH] * 6 + ["/health"]
    assert server.most_at_once <= 2


async def test_a_health_that_is_too_old_is_asked_again(server: Scripted) -> None:
    server.other = answer(200)
    post = poster(server, limits=PostLimits(health_seconds=0))
    for _ in range(3):
        await post.tell(agent(server), b"{}", {})
    assert server.paths() == ["/health", PATH] * 3


@pytest.mark.parametrize("health", [answer(503, b"starting"), answer(302, Location="/x"), answer(404), raw(b"no")])
async def test_an_unhealthy_agent_is_told_nothing_and_left_alone_for_a_while(
    server: Scripted, health: Behaviour
) -> None:
    server.behaviours["/health"] = health
    post = poster(server)
    for _ in range(3):
        with pytest.raises(Unavailable, match=r"old-7 at http://127\.0\.0\.1:\d+ is not healthy") as raised:
            await post.tell(agent(server), b"{}", {})
        assert raised.value.reason == "http-unhealthy"
        assert 0 < raised.value.retry_after_seconds <= 5
    assert server.paths() == ["/health"]
    assert post.counters == {"http-unhealthy": 3}


async def test_an_agent_that_does_not_answer_for_its_health_is_unhealthy(server: Scripted) -> None:
    server.other = hang
    post = poster(server, limits=PostLimits(seconds=0.5))
    with pytest.raises(Unavailable, match=r"is not healthy: .*/health: no whole answer") as raised:
        await post.tell(agent(server), b"{}", {})
    assert raised.value.reason == "http-unhealthy"


async def test_an_agent_that_is_not_there_is_unhealthy() -> None:
    port = await closed_port()
    post = HttpPost(legacy_path=PATH, health_port=port)
    with pytest.raises(Unavailable, match="Connection refused"):
        await post.tell(LegacyAgent("old-7", f"http://127.0.0.1:{port}"), b"{}", {})


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_an_agent_that_cannot_now_may_be_told_again_after_its_health_was_asked_anew(
    server: Scripted, status: int
) -> None:
    server.other = answer(200)
    server.behaviours[PATH] = answer(status, b"busy")
    post = poster(server)
    with pytest.raises(Unavailable, match=f"old-7 at .* answers {status}"):
        await post.tell(agent(server), b"{}", {})
    server.behaviours[PATH] = answer(201)
    await post.tell(agent(server), b"{}", {})
    assert server.paths() == ["/health", PATH] * 2


@pytest.mark.parametrize(
    ("behaviour", "says"),
    [
        (answer(404, b"no such \x1b[31mroute"), r"404 \(no such \?\[31mroute\)"),
        (answer(422, b'{"detail": "no roles"}'), r"422 \(no roles\)"),
        (answer(307, Location="/elsewhere"), "307, to /elsewhere"),
    ],
)
async def test_what_an_agent_refuses_is_not_for_a_retry(server: Scripted, behaviour: Behaviour, says: str) -> None:
    server.other = answer(200)
    server.behaviours[PATH] = behaviour
    post = poster(server)
    with pytest.raises(InvalidRequest, match=f"old-7 at .*{says}"):
        await post.tell(agent(server), b"{}", {})
    assert server.paths() == ["/health", PATH]
    assert post.counters == {"refused": 1}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "agent")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    directory = tmp_path_factory.mktemp("tls")
    pem, private = directory / "cert.pem", directory / "key.pem"
    pem.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return pem, private


async def test_a_certificate_is_checked(certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with trio.fail_after(60):
        async with open_scripted(context) as server:
            with pytest.raises(Unavailable, match=r"bob at https://.*certificate") as raised:
                await poster().hand_over(target(server), MESSAGE)
            assert raised.value.reason == "http-unreachable"
            monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
            await poster().hand_over(target(server), MESSAGE)
            assert [each.body for each in server.asked] == [MESSAGE.raw]
