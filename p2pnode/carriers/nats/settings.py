"""What a connection to NATS needs to know."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True)
class BrokerSettings:
    """How to reach NATS, as whom, and what to do with JetStream.

    Args:
        servers: `nats://HOST[:PORT]` or `tls://HOST[:PORT]` of one cluster. `tls://` never speaks to a server in the
            clear; `nats://` uses TLS where the server asks for it.
        name: what the server's monitoring shows, such as `CHORUS Agent 7c31`.
        nkey: a seed (`SU…`) or the path of a file that holds one.
        creds_file: user JWT and seed, as `nsc` writes them; read again at each attempt to connect.
        tls_ca_file: certificates that the server's must descend from; None: the system's.
        jetstream: `off` never asks for it; with `on`, a server without it is a trouble.
        stream: the stream to make for subjects that no stream holds.
        max_age_seconds: how long a stream that is made here keeps messages.
    """

    servers: tuple[str, ...]
    name: str
    user: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    creds_file: Path | None = None
    nkey: str = field(default="", repr=False)
    tls_ca_file: Path | None = None
    tls_cert_file: Path | None = None
    tls_key_file: Path | None = None
    jetstream: Literal["auto", "on", "off"] = "auto"
    stream: str = "P2PNODE"
    max_age_seconds: float = 7 * 86400.0
