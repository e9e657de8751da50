"""Rules of API addresses."""

from __future__ import annotations

import pytest

from p2pnode.api.address import ApiListener, TcpAddress, UnixAddress, parse_api_address
from p2pnode.errors import InvalidRequest


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("unix:/run/p2pnode/api.sock", UnixAddress("/run/p2pnode/api.sock")),
        ("unix:api.sock", UnixAddress("api.sock")),
        ("unix:/with:colon", UnixAddress("/with:colon")),
        ("tcp:127.0.0.1:8080", TcpAddress("127.0.0.1", 8080)),
        ("tcp:localhost:0", TcpAddress("localhost", 0)),
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
        ("tcp:127.0.0.1", "port from 0 to 65535"),
        ("tcp:127.0.0.1:", "port from 0 to 65535"),
        ("tcp:127.0.0.1:65536", "port from 0 to 65535"),
        ("tcp:127.0.0.1:-1", "port from 0 to 65535"),
        ("tcp:127.0.0.1:٣", "port from 0 to 65535"),
        ("tcp::8080", "tcp:127.0.0.1:8080"),
        ("tcp:::1:8080", "brackets"),
        ("tcp:[zz]:8080", "tcp:[::1]:8080"),
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
