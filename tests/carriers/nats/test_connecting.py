"""Who we are, TLS, and servers that are not there: each told in a sentence, none the end of it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from p2pnode.carriers.nats import BrokerSettings, NatsBroker
from p2pnode.carriers.nats import connection as connection_module
from p2pnode.carriers.nats.credentials import Trouble, read_credentials
from p2pnode.carriers.nats.faults import explain
from p2pnode.errors import Unavailable
from tests.carriers.nats.accounts import Accounts, user_seed
from tests.carriers.nats.certificates import Authority, server_tls
from tests.carriers.nats.kit import FORMING, Taken, connected, ready, running, settings, until
from tests.carriers.nats.server import Build, NatsServer

USERS = 'authorization { users: [ { user: "whoosh", password: "p@ss:w/rd%41" } ] }'


async def told(server: NatsServer, code: str, *said: str, **changes: Any) -> None:
    """A broker with these settings says so, and does not publish."""
    broker = NatsBroker(settings(server, **changes))
    async with running(broker):
        await until(f"told {code}", lambda: broker.state().code)
        state = broker.state()
        assert state.code == code, state
        assert not state.connected
        assert all(each in state.problem for each in said), state.problem
        assert state.fix
        with pytest.raises(Unavailable) as caught:
            await broker.publish(FORMING, b"{}", {})
        assert caught.value.reason == "nats"


async def test_a_server_absent_at_the_start_is_used_once_it_is_there(tmp_path: Path, build: Build) -> None:
    server = NatsServer(tmp_path / "server", build=build)
    await told(server, "unreachable", server.url)
    taken = Taken()
    broker = NatsBroker(settings(server))
    broker.consume("bridge", [FORMING], taken.take)
    broker.watch(["hmmm.>"], taken.note)
    async with running(broker):
        await until("told", lambda: broker.state().code == "unreachable")
        with server:
            server.start()
            await ready(broker)
            await broker.publish(FORMING, b"1", {})
            await broker.publish("hmmm.a", b"2", {})
            await until("both", lambda: sorted(taken.bodies) == [b"1", b"2"])


async def test_the_next_server_of_the_list_is_used_when_one_is_gone(tmp_path: Path) -> None:
    with NatsServer(tmp_path / "a").start() as one, NatsServer(tmp_path / "b").start() as two:
        broker = NatsBroker(settings(one, servers=(one.url, two.url)))
        async with connected(broker):
            assert broker.state().server == one.url
            one.kill()
            await until("the other", lambda: broker.state().connected and broker.state().server == two.url)
            assert await broker.publish(FORMING, b"{}", {}) is False


async def test_a_password_is_taken_literally_and_a_wrong_one_is_told(tmp_path: Path, build: Build) -> None:
    with NatsServer(tmp_path / "server", build=build, config=USERS).start() as server:
        async with connected(NatsBroker(settings(server, user="whoosh", password="p@ss:w/rd%41"))) as broker:
            assert broker.state().code == ""
        await told(server, "authorization", "user whoosh", server.url, user="whoosh", password="p@ss:w/rdA")
        await told(server, "authorization", "without credentials")


async def test_a_refusal_is_loud_and_not_repeated_each_second(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with NatsServer(tmp_path / "server", config=USERS).start() as server:
        broker = NatsBroker(settings(server, user="whoosh", password="no"))
        with caplog.at_level(logging.INFO):
            async with running(broker):
                await until("refused thrice", lambda: server.log.count("authentication error") >= 3)
        loud = [each for each in caplog.records if each.levelno == logging.ERROR]
        assert len(loud) == 1
        assert "Authorization Violation" in loud[0].getMessage()


async def test_a_token_and_an_nkey_let_us_in(tmp_path: Path, build: Build) -> None:
    with NatsServer(tmp_path / "a", build=build, config='authorization { token: "s3cret" }').start() as server:
        async with connected(NatsBroker(settings(server, token="s3cret"))):
            pass
        await told(server, "authorization", "nats.token", token="other")
    seed, public = user_seed()
    path = tmp_path / "user.nk"
    path.write_text(f"{seed}\n")
    config = f"authorization {{ users: [ {{ nkey: {public} }} ] }}"
    with NatsServer(tmp_path / "b", build=build, config=config).start() as server:
        for nkey in (seed, str(path)):
            async with connected(NatsBroker(settings(server, nkey=nkey))):
                pass
        await told(server, "credentials", "nats.nkey", nkey=str(tmp_path / "none"))
        await told(server, "credentials", "nats.nkey", nkey="SUXXXX")
        await told(server, "authorization", "nats.nkey", nkey=user_seed()[0])


@pytest.mark.parametrize("garbled", ["X{}", "{}X", '"{}"', "{}1", "seed {}", "{}\nPUBLIC"])
def test_a_seed_with_something_around_it_is_not_shown(garbled: str) -> None:
    seed, _ = user_seed()
    with pytest.raises(Trouble) as caught:
        read_credentials(BrokerSettings(("nats://127.0.0.1:4222",), "a", nkey=garbled.format(seed)))
    assert caught.value.code == "credentials"
    assert "nats.nkey" in caught.value.problem
    assert seed[2:20] not in caught.value.problem


async def test_a_creds_file_lets_us_in_and_a_bad_one_is_told(tmp_path: Path, build: Build) -> None:
    accounts = Accounts()
    with NatsServer(tmp_path / "server", build=build, jetstream=False, config=accounts.config).start() as server:
        good = accounts.creds(tmp_path / "good.creds")
        async with connected(NatsBroker(settings(server, creds_file=good))) as broker:
            assert await broker.publish(FORMING, b"{}", {}) is False
        windows = tmp_path / "windows.creds"
        windows.write_bytes(good.read_bytes().replace(b"\n", b"\r\n"))
        async with connected(NatsBroker(settings(server, creds_file=windows))):
            pass
        await told(server, "credentials", "none.creds", creds_file=tmp_path / "none.creds")
        for content in (
            "",
            "rubbish",
            good.read_text().replace("eyJ", "///", 1),
            good.read_text().partition("-----BEGIN USER NKEY")[0],
        ):
            garbled = tmp_path / "garbled.creds"
            garbled.write_text(content)
            await told(server, "credentials", "garbled.creds", creds_file=garbled)
        binary = tmp_path / "binary.creds"
        binary.write_bytes(bytes(range(256)))
        await told(server, "credentials", "no text", creds_file=binary)
        stranger = Accounts().creds(tmp_path / "stranger.creds")
        await told(server, "authorization", "stranger.creds", creds_file=stranger)
        old = accounts.creds(tmp_path / "old.creds", expires_in_seconds=-60)
        await told(server, "credentials-expired", "old.creds", creds_file=old)


async def test_credentials_that_expire_while_connected_are_told_and_renewed_ones_are_used(
    tmp_path: Path, build: Build
) -> None:
    accounts = Accounts()
    with NatsServer(tmp_path / "server", build=build, jetstream=False, config=accounts.config).start() as server:
        creds = accounts.creds(tmp_path / "user.creds", expires_in_seconds=3)
        broker = NatsBroker(settings(server, creds_file=creds))
        async with connected(broker):
            await until("expired", lambda: broker.state().code == "credentials-expired")
            assert not broker.state().connected
            accounts.creds(creds)
            await until("connected again", lambda: broker.state().connected)
            assert await broker.publish(FORMING, b"{}", {}) is False


async def test_a_plaintext_server_behind_tls_is_refused_before_anything_is_sent(tmp_path: Path, build: Build) -> None:
    with NatsServer(
        tmp_path / "server", build=build, scheme="tls", config="debug: true\ntrace: true"
    ).start() as server:
        await told(server, "plaintext", server.url, user="whoosh", password="secret")
        assert "CONNECT" not in server.log


async def test_tls_is_used_and_verified(tmp_path: Path, build: Build) -> None:
    authority = Authority(tmp_path / "tls")
    config = server_tls(authority.issue("server"))
    with NatsServer(tmp_path / "server", build=build, scheme="tls", config=config).start() as server:
        async with connected(NatsBroker(settings(server, tls_ca_file=authority.file))) as broker:
            assert broker.state().server == server.url
        stranger = Authority(tmp_path / "tls", "stranger")
        await told(server, "tls", "certificate", tls_ca_file=stranger.file)
        await told(server, "tls", "certificate")
        await told(server, "tls", "nats.tls_ca_file", tls_ca_file=tmp_path / "none.pem")
        by_name = server.url.replace("127.0.0.1", "localhost")
        await told(server, "tls", "certificate", servers=(by_name,), tls_ca_file=authority.file)
        plain = server.url.replace("tls://", "nats://")
        async with connected(NatsBroker(settings(server, servers=(plain,), tls_ca_file=authority.file))):
            pass


async def test_what_is_wrong_with_tls_is_told_the_same_at_each_attempt(
    tmp_path: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    told_codes: list[str] = []

    def noted(*args: Any, **names: Any) -> Trouble:
        trouble = explain(*args, **names)
        told_codes.append(trouble.code)
        return trouble

    monkeypatch.setattr(connection_module, "explain", noted)
    authority = Authority(tmp_path / "tls")
    config = server_tls(authority.issue("server"))
    with NatsServer(tmp_path / "server", build=build, scheme="tls", config=config).start() as server:
        async with running(NatsBroker(settings(server))):
            await until("tried four times", lambda: len(told_codes) >= 4)
        assert set(told_codes) == {"tls"}
        broker = NatsBroker(settings(server, tls_ca_file=authority.file))
        async with connected(broker):
            server.kill()
            told_codes.clear()
            await until("tried three times", lambda: len(told_codes) >= 3)
            server.start()
            await until("back", lambda: broker.state().connected)
        assert "plaintext" not in told_codes


async def test_a_server_that_asks_for_a_certificate_gets_ours(tmp_path: Path, build: Build) -> None:
    authority = Authority(tmp_path / "tls")
    config = server_tls(authority.issue("server"), client_authority=authority)
    ours = authority.issue("client")
    theirs = Authority(tmp_path / "tls", "stranger").issue("foreign")
    with NatsServer(tmp_path / "server", build=build, scheme="tls", config=config).start() as server:
        ca = authority.file
        mine = settings(server, tls_ca_file=ca, tls_cert_file=ours.certificate, tls_key_file=ours.key)
        async with connected(NatsBroker(mine)):
            pass
        await told(server, "tls", server.url, tls_ca_file=ca)
        await told(server, "tls", server.url, tls_ca_file=ca, tls_cert_file=theirs.certificate, tls_key_file=theirs.key)
        await told(
            server, "tls", "nats.tls_key_file", tls_ca_file=ca, tls_cert_file=ours.certificate, tls_key_file=theirs.key
        )


async def test_a_server_that_waits_for_the_handshake_is_understood(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "tls")
    config = server_tls(authority.issue("server"), first=True)
    with NatsServer(tmp_path / "server", scheme="tls", config=config).start() as server:
        broker = NatsBroker(settings(server, tls_ca_file=authority.file))
        async with connected(broker):
            server.kill()
            await until("gone", lambda: not broker.state().connected)
            server.start()
            await until("back", lambda: broker.state().connected)


async def test_permissions_that_are_missing_are_told_and_the_rest_works(tmp_path: Path, build: Build) -> None:
    users = """authorization { users: [ { user: a, password: a, permissions: {
        publish: { deny: ["chorus.councils.forming"] }, subscribe: { deny: ["hmmm.>"] } } } ] }"""
    with NatsServer(tmp_path / "server", build=build, config=users).start() as server:
        taken = Taken()
        broker = NatsBroker(settings(server, user="a", password="a"))
        broker.watch(["hmmm.>", "ops.>"], taken.note)
        async with connected(broker):
            with pytest.raises(Unavailable, match="does not let us publish"):
                await broker.publish(FORMING, b"{}", {})
            await broker.publish("ops.x", b"1", {})
            await until("heard", lambda: taken.bodies == [b"1"])
            assert broker.state().connected
            assert broker.state().code == "authorization"
            assert "hmmm.>" in broker.state().problem


async def test_a_host_that_has_no_name_and_a_port_that_is_no_nats_are_told(tmp_path: Path) -> None:
    with NatsServer(tmp_path / "server").start() as server:
        await told(server, "unreachable", "no-such-host.invalid", servers=("nats://no-such-host.invalid:4222",))
        await told(server, "unreachable", "Connection refused", servers=(f"{server.url.rpartition(':')[0]}:1",))
        await told(server, "url", "nats://127.0.0.1:99999 ", "out of range", servers=("nats://127.0.0.1:99999",))
        await told(server, "url", "nats://h:70000 ", servers=("nats://whoosh:pa55@h:70000",))
        for secret in ("nats://u:s3cret/x@h:1", "nats://u:12345678/x@h:1", "nats://u:12345678?x@h:1"):
            broker = NatsBroker(settings(server, servers=(secret,)))
            async with running(broker):
                await until("told", lambda broker=broker: broker.state().code)  # type: ignore[misc]
                assert broker.state().code == "url"
                assert not any(each in repr(broker.state()) for each in ("s3cret", "12345678")), broker.state()


def test_secrets_are_not_shown() -> None:
    shown = repr(BrokerSettings(("nats://h",), "n", password="hidden1", token="hidden2", nkey="hidden3"))
    assert "hidden" not in shown
