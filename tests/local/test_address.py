"""Rules of API addresses."""

from __future__ import annotations

import pytest

from p2pnode.errors import InvalidRequest
from p2pnode.local.address import ApiListener, TcpAddress, UnixAddress, parse_api_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("unix:/run/p2pnode/api.sock", UnixAddress("/run/p2pnode/api.sock")),
        ("unix:api.sock", UnixAddress("api.sock")),
        ("unix:/with:colon", UnixAddress("/with:colon")),
        ("tcp:127.0.0.1:8080", TcpAddress("127.0.0.1", 8080)),
        ("tcp:localhost:0", TcpAddress("localhost", 0)),
        ("tcp:CHORUS_node-7.example:80", TcpAddress("CHORUS_node-7.example", 80)),
        ("tcp:[::1]:65535", TcpAddress("::1", 65535)),
    ],
)
def test_a_good_address_is_read_and_written_back(text: str, address: ApiListener) -> None:
    assert parse_api_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("", "unix:PATH"),
        ("/run/api.sock", "unix:PATH"),
        ("http://127.0.0.1:80", "tcp:HOST:PORT"),
        ("unix:", "unix:/run/p2pnode/api.sock"),
        ("unix:///run/api.sock", "no URL"),
        ("unix:/run/", "path of a file"),
        ("unix:/a\0b", "NUL"),
        ("unix:/a\n", "control characters"),
        ("unix:~nobody-of-this-name/api.sock", "no such user"),
        ("unix:/\ud800", "no such characters"),
        ("unix:/" + "x" * 107, "at most 107 bytes, this one 108"),
        ("unix:/" + "é" * 54, "this one 109"),
        ("tcp:127.0.0.1", "port from 0 to 65535"),
        ("tcp:127.0.0.1:", "port from 0 to 65535"),
        ("tcp:127.0.0.1:65536", "port from 0 to 65535"),
        ("tcp:127.0.0.1:-1", "port from 0 to 65535"),
        ("tcp:127.0.0.1:٣", "port from 0 to 65535"),
        ("tcp::8080", "tcp:127.0.0.1:8080"),
        ("tcp:::1:8080", "brackets"),
        ("tcp:[zz]:8080", "tcp:[::1]:8080"),
        ("tcp:300.0.0.1:8080", "neither a host name nor an IP address"),
        ("tcp:127.1:8080", "neither a host name nor an IP address"),
        ("tcp:-x:8080", "neither a host name"),
        ("tcp:a..b:8080", "neither a host name"),
        ("tcp:a b:8080", "neither a host name"),
        ("tcp://x:80", "neither a host name"),
    ],
)
def test_a_bad_address_is_refused_with_its_fix(text: str, fix: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_api_address(text, field="api.listen")
    (fault,) = caught.value.faults
    assert fault.field == "api.listen"
    assert fix in fault.problem


def test_the_longest_socket_path_is_accepted() -> None:
    parse_api_address("unix:/" + "x" * 106)


def test_a_path_may_start_in_the_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/agent")
    assert parse_api_address("unix:~/api.sock") == UnixAddress("/home/agent/api.sock")


def test_an_ipv6_address_is_written_in_its_plain_form() -> None:
    assert str(parse_api_address("tcp:[0:0::1]:80")) == "tcp:[::1]:80"


@pytest.mark.parametrize(
    ("text", "loopback"),
    [
        ("unix:/run/api.sock", True),
        ("tcp:127.0.0.1:80", True),
        ("tcp:127.9.9.9:80", True),
        ("tcp:[::1]:80", True),
        ("tcp:localhost:80", True),
        ("tcp:LocalHost:80", True),
        ("tcp:0.0.0.0:80", False),
        ("tcp:[::]:80", False),
        ("tcp:10.0.0.1:80", False),
        ("tcp:node-7:80", False),
    ],
)
def test_loopback_is_what_only_this_machine_reaches(text: str, loopback: bool) -> None:
    assert parse_api_address(text).loopback is loopback
