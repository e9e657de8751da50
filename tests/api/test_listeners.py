"""Rules of opening and leaving the sockets of the API."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from pathlib import Path
from typing import NoReturn

import httpx
import pytest
import trio
import trio.testing

from p2pnode.api.server import open_api
from p2pnode.errors import EnvironmentFault, P2PNodeError
from p2pnode.local.address import TcpAddress, UnixAddress
from tests.api.fake import DEADLINE_SECONDS, LOOPBACK, FakeSidecar, port_of, serving, tcp_client, unix_client


def leave_stale_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
        dead.listen()


def exists(path: str | Path) -> bool:
    return os.path.exists(path)


async def healthy(client: httpx.AsyncClient) -> bool:
    async with client:
        return (await client.get("/health")).text == '{"status":"healthy"}'


async def test_unix_socket_is_private_even_under_umask_0(sidecar: FakeSidecar, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        async with serving(sidecar, tmp_path) as served:
            assert stat.S_IMODE(os.stat(served.path).st_mode) == 0o600
    finally:
        os.umask(before)


async def test_unix_socket_has_mode_0600_before_it_is_chmodded_by_path(
    sidecar: FakeSidecar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object) -> None:
        raise AssertionError("a chmod by path comes after bind, and leaves a gap")

    monkeypatch.setattr(os, "chmod", forbidden)
    async with serving(sidecar, tmp_path) as served:
        assert stat.S_IMODE(os.stat(served.path).st_mode) == 0o600


async def test_every_listener_answers_as_soon_as_the_api_is_open(sidecar: FakeSidecar, tmp_path: Path) -> None:
    unix = UnixAddress(str(tmp_path / "api.sock"))
    async with open_api(sidecar, [unix, LOOPBACK]) as api:
        assert api.addresses == (unix, TcpAddress("127.0.0.1", port_of(api)))
        assert port_of(api) != 0
        assert await healthy(unix_client(unix.path))
        assert await healthy(tcp_client(api))


async def test_a_name_is_resolved_and_kept_in_the_address(sidecar: FakeSidecar) -> None:
    async with open_api(sidecar, [TcpAddress("localhost", 0)]) as api:
        (address,) = api.addresses
        assert isinstance(address, TcpAddress)
        assert address.host == "localhost"
        assert await healthy(tcp_client(api))


async def test_a_stale_socket_is_replaced(sidecar: FakeSidecar, tmp_path: Path) -> None:
    leave_stale_socket(tmp_path / "api.sock")
    async with serving(sidecar, tmp_path) as served:
        assert (await served.client.get("/health")).status_code == 200


async def test_a_live_socket_is_refused_and_goes_on_living(sidecar: FakeSidecar, tmp_path: Path) -> None:
    async with serving(sidecar, tmp_path) as served:
        with pytest.raises(EnvironmentFault, match="another sidecar answers"):
            async with open_api(sidecar, [UnixAddress(served.path)]):
                pass
        assert (await served.client.get("/health")).status_code == 200


async def test_of_two_that_start_at_once_over_a_stale_socket_one_wins(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    leave_stale_socket(path)
    outcomes: list[str] = []
    done = trio.Event()

    async def contend() -> None:
        try:
            async with open_api(FakeSidecar(), [UnixAddress(str(path))]):
                outcomes.append("open")
                await done.wait()
        except EnvironmentFault:
            outcomes.append("refused")
            done.set()

    with trio.fail_after(DEADLINE_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(contend)
            nursery.start_soon(contend)
    assert sorted(outcomes) == ["open", "refused"]


async def test_a_directory_another_sidecar_is_opening_in_is_waited_for_and_then_refused(
    sidecar: FakeSidecar, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    address = UnixAddress(str(tmp_path / "api.sock"))
    other = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(EnvironmentFault, match=r"keeps .* locked"):
            async with open_api(sidecar, [address]):
                pass
        assert autojump_clock.current_time() > 1
    finally:
        os.close(other)
    async with open_api(sidecar, [address]):
        assert exists(address.path)


async def test_a_file_that_is_no_socket_is_never_removed(sidecar: FakeSidecar, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("precious")
    with pytest.raises(EnvironmentFault, match="no socket"):
        async with open_api(sidecar, [UnixAddress(str(path))]):
            pass
    assert path.read_text() == "precious"


async def test_the_socket_file_is_gone_afterwards(sidecar: FakeSidecar, tmp_path: Path) -> None:
    async with serving(sidecar, tmp_path) as served:
        assert exists(served.path)
    assert not exists(served.path)


async def test_a_socket_file_that_is_no_longer_ours_stays(sidecar: FakeSidecar, tmp_path: Path) -> None:
    async with serving(sidecar, tmp_path) as served:
        os.unlink(served.path)
        leave_stale_socket(Path(served.path))
    assert exists(served.path)


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("/" + "x" * 107, "108 bytes"),
        ("/nowhere-at-all/api.sock", "create the directory"),
        ("/proc/api.sock", "cannot listen there"),
        ("/dev/null/api.sock", "is no directory"),
    ],
)
async def test_an_impossible_path_says_what_to_do(sidecar: FakeSidecar, path: str, what: str) -> None:
    with pytest.raises(EnvironmentFault) as caught:
        async with open_api(sidecar, [UnixAddress(path)]):
            pass
    assert what in str(caught.value)
    assert caught.value.hint


async def test_the_longest_path_the_system_allows_works(sidecar: FakeSidecar, tmp_path: Path) -> None:
    path = str(tmp_path / ("x" * (106 - len(str(tmp_path)))))
    assert len(path) == 107
    async with open_api(sidecar, [UnixAddress(path)]):
        assert await healthy(unix_client(path))


async def test_a_port_in_use_says_so_and_leaves_no_other_listener(sidecar: FakeSidecar, tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    async with open_api(sidecar, [LOOPBACK]) as api:
        taken = TcpAddress("127.0.0.1", port_of(api))
        with pytest.raises(EnvironmentFault, match="another program listens there"):
            async with open_api(sidecar, [UnixAddress(str(path)), taken]):
                pass
    assert not exists(path)


class NoNames(trio.abc.HostnameResolver):
    """A machine whose resolver knows no name; asks nobody."""

    async def getaddrinfo(self, *_: object, **__: object) -> NoReturn:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async def getnameinfo(self, *_: object) -> NoReturn:
        raise AssertionError("nobody needs the name of an address")


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host", "x" * 64])
async def test_a_foreign_address_or_an_unknown_name_says_so(sidecar: FakeSidecar, host: str) -> None:
    trio.socket.set_custom_hostname_resolver(NoNames())
    with pytest.raises(EnvironmentFault) as caught:
        async with open_api(sidecar, [TcpAddress(host, 0)], token="secret"):
            pass
    assert host in str(caught.value)
    assert caught.value.hint


async def test_an_error_of_the_block_leaves_it_unwrapped(sidecar: FakeSidecar, tmp_path: Path) -> None:
    with pytest.raises(P2PNodeError, match="mine"):
        async with serving(sidecar, tmp_path):
            raise P2PNodeError("mine")
    assert not exists(tmp_path / "api.sock")
