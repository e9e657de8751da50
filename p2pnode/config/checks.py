"""Checks of single values, and the marks by which a type carries them.

The marks stand in `typing.Annotated`; pydantic obeys them, and importing them does not import pydantic.
A check takes what was written and returns its plain form, or raises ValueError with what would be right.
"""

from __future__ import annotations

import ipaddress
import re
from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from p2pnode.core.message import parse_topic
from p2pnode.core.peerid import peer_id_bytes
from p2pnode.core.subjects import check_mapping
from p2pnode.errors import InvalidMessage
from p2pnode.local.address import is_host_name


@dataclass(frozen=True, slots=True)
class Check:
    """Run a function over a value; a ValueError is the fault's problem.

    Args:
        function: takes the value, returns it or its plain form.
        before: run it on what was written, before its type is looked at.
    """

    function: Callable[[Any], Any]
    before: bool = False

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        from pydantic_core import core_schema

        if self.before:
            return core_schema.no_info_before_validator_function(self.function, handler(source))
        return core_schema.no_info_after_validator_function(self.function, handler(source))


@dataclass(frozen=True, slots=True)
class Between:
    """A number from `low` to `high`, both included; true and false, NaN and the infinities are none."""

    low: float
    high: float

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_wrap_validator_function(self._check, handler(source))

    def _check(self, value: Any, read: Callable[[Any], Any]) -> Any:
        if isinstance(value, bool):
            raise ValueError(f"must be a number, not {str(value).lower()}")
        number = read(value)
        if not self.low <= number <= self.high:
            raise ValueError(f"must be from {self.low} to {self.high}, not {number}")
        return number


def check_switch(value: object) -> bool:
    """True or false: a boolean in TOML, a word in the environment."""
    if isinstance(value, bool):
        return value
    words = {"true": True, "1": True, "false": False, "0": False}
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    raise ValueError(f"must be true or false (in the environment also 1 or 0), not {value!r:.80}")


def check_name(value: str) -> str:
    # It names files in the runtime directory, a Unix socket among them, whose path has 107 bytes in all.
    if "/" in value or value.startswith(".") or len(value.encode(errors="replace")) > 64:
        raise ValueError(f"must be at most 64 bytes without '/' and not start with '.', not {value!r}")
    return _printable(value, 64)


def check_text(value: str) -> str:
    return _printable(value, 256)


def check_word(value: str) -> str:
    if not value:
        raise ValueError("must not be an empty string")
    return check_text(value)


def _printable(value: str, limit: int) -> str:
    if len(value) > limit or not value.isprintable() or value != value.strip():
        raise ValueError(f"must be at most {limit} printable characters without blanks at either end, not {value!r}")
    return value


def check_cluster(value: str) -> str:
    if not value or len(value) > 64 or not value.isascii() or not value.replace("-", "").replace("_", "").isalnum():
        raise ValueError(f"must be letters, digits, _ and - (it becomes part of a NATS subject), not {value!r}")
    return value


def check_topic(value: str) -> str:
    try:
        return parse_topic(value)
    except InvalidMessage as error:
        raise ValueError(error.detail) from None


def check_endpoint(value: str) -> str:
    if not value:
        return value
    try:
        url = urlsplit(value)
        good = url.scheme in ("http", "https") and bool(url.hostname) and (url.port is None or url.port > 0)
    except ValueError:
        good = False
    if not good or not value.isprintable() or " " in value:
        raise ValueError(f"must be a URL such as http://10.0.1.7:8080, not {value!r}")
    return value


def check_webhook(value: str) -> str:
    check_endpoint(value)
    url = urlsplit(value)
    if "@" in url.netloc:
        # The value is shown by `config show` and in faults: a secret in a path is at least not taken for a name.
        raise ValueError("must not hold a user or password: give the agent a path that only its sidecar knows")
    if url.fragment:
        raise ValueError(f"must not hold a fragment (#{url.fragment}): it is never sent")
    return value


def check_allowed_host(value: str) -> str:
    if is_host_name(value):
        return value.lower()
    try:
        return str(ipaddress.IPv6Address(value.removeprefix("[").removesuffix("]")))
    except ValueError:
        raise ValueError(
            f"must be a host name or an IP address, without scheme, port or wildcard, not {value!r}"
        ) from None


def check_network_key(value: str) -> str:
    """64 hexadecimal digits, from those or from the text of a swarm.key file; what was written is not repeated."""
    lines = value.split()
    encoding, text = "/base16/", value.strip()
    if lines[:1] == ["/key/swarm/psk/1.0.0/"] and len(lines) == 3:
        encoding, text = lines[1], lines[2]
    try:
        key = bytes.fromhex(text) if encoding == "/base16/" else b64decode(text, validate=True)
    except ValueError:
        key = b""
    if value and (len(key) != 32 or encoding not in ("/base16/", "/base64/")):
        raise ValueError("must be 64 hexadecimal digits, or the text of a swarm.key file with 32 bytes of key")
    return key.hex()


def check_cidr(value: str) -> str:
    try:
        return str(ipaddress.ip_network(value))
    except ValueError as error:
        raise ValueError(f"must be a network such as 10.0.1.0/24 or fd00::/8, not {value!r} ({error})") from None


def check_service(value: str) -> str:
    plain = value.replace("-", "").replace("_", "").replace(".", "")
    if not plain.isalnum() or not value.isascii() or len(value) > 128:
        raise ValueError(f"must be a service's name as `docker service ls` prints it (CHORUS_chorus), not {value!r}")
    return value


def check_docker_host(value: str) -> str:
    try:
        url = urlsplit(value)
        good = (
            (url.scheme == "unix" and not url.netloc and url.path.startswith("/"))
            or (url.scheme in ("tcp", "http") and bool(url.hostname) and url.port is not None and url.path in ("", "/"))
        ) and not (url.username or url.password or url.query or url.fragment)
    except ValueError:
        good = False
    if good and value.isprintable() and " " not in value:
        return value.rstrip("/")
    if value.startswith("ssh:"):
        raise ValueError(f"{value!r}: ssh is not supported; forward the socket (ssh -L) and give unix:///PATH")
    if value.startswith("https:"):
        raise ValueError(
            f"{value!r}: TLS is not supported; put a socket proxy beside the node and give tcp://HOST:PORT"
        )
    raise ValueError(f"must be unix:///PATH, tcp://HOST:PORT or http://HOST:PORT, not {value!r}")


def check_peer_id(value: str) -> str:
    try:
        peer_id_bytes(value)
    except InvalidMessage as error:
        raise ValueError(error.detail) from None
    return value


def check_path(value: object) -> object:
    if not isinstance(value, str):
        return value
    if not value or "\0" in value:
        raise ValueError(f"must be a path, not {value!r}")
    try:
        return Path(value).expanduser()
    except RuntimeError:
        raise ValueError(f"{value!r}: there is no such user, or this one has no home directory") from None


def check_path_or_none(value: object) -> object:
    return None if value == "" else check_path(value)


def check_carrier_listener(value: str) -> str:
    if not value:
        return value
    host, colon, port = value.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"must be HOST:PORT, such as 0.0.0.0:9001 or [::]:9001, not {value!r}")
    try:
        return f"[{ipaddress.IPv6Address(host)}]:{int(port)}" if ":" in host else f"{host}:{int(port)}"
    except ValueError:
        raise ValueError(f"{host!r} is no IPv6 address") from None


def check_nats_url(value: str) -> str:
    try:
        url = urlsplit(value)
        good = url.scheme in ("nats", "tls") and bool(url.hostname) and (url.port is None or url.port > 0)
    except ValueError:
        good = False
    port = re.fullmatch(r"(?:nats|tls)://[^@/?#\s]+:([0-9]+)/?", value)
    if port is not None and not 0 < int(port[1]) < 65536:
        raise ValueError(f"port {port[1]} of {value} is out of range: 1 to 65535")
    if not good or not value.isprintable() or " " in value or url.path not in ("", "/") or url.query or url.fragment:
        raise ValueError("must be nats://HOST:PORT or tls://HOST:PORT, without path (what was given is not repeated)")
    if url.username is not None or url.password is not None:
        raise ValueError(
            "must not hold a user or password, which logs would show: set nats.user and nats.password, or nats.token"
        )
    return value.rstrip("/")


def check_secret(value: str) -> str:
    if len(value) > 4096 or not value.isprintable():
        raise ValueError("must be at most 4096 printable characters (what was given is not repeated)")
    return value


def check_subject_pair(value: str) -> str:
    topic, equals, subject = value.partition("=")
    if not equals:
        raise ValueError(f"must be TOPIC=SUBJECT, such as alerts=ops.alerts, not {value!r}")
    try:
        check_mapping(topic, subject)
    except InvalidMessage as error:
        raise ValueError(error.detail) from None
    return value


def check_url_path(value: str) -> str:
    if not value.startswith("/") or not value.isprintable() or any(each in value for each in " ?#"):
        raise ValueError(f"must be a path such as /api/v1/opportunities, not {value!r}")
    return value
