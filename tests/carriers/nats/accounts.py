"""An operator, an account and users with JWTs, as `nsc` makes them."""

from __future__ import annotations

import base64
import json
import os
import time
from pathlib import Path
from typing import Any

import nkeys  # type: ignore[import-untyped]


class Accounts:
    """`config` makes a server trust its operator; `creds` writes a user's file."""

    def __init__(self) -> None:
        self._operator = _pair(nkeys.PREFIX_BYTE_OPERATOR)
        self._account = _pair(nkeys.PREFIX_BYTE_ACCOUNT)

    @property
    def config(self) -> str:
        unlimited = ("subs", "data", "payload", "imports", "exports", "conn", "leaf")
        account = {"type": "account", "version": 2, "limits": dict.fromkeys(unlimited, -1) | {"wildcards": True}}
        account_jwt = _sign(self._operator, _public(self._account), account)
        operator_jwt = _sign(self._operator, _public(self._operator), {"type": "operator", "version": 2})
        return (
            f"operator: {operator_jwt}\nresolver: MEMORY\n"
            f"resolver_preload: {{ {_public(self._account)}: {account_jwt} }}"
        )

    def creds(self, path: Path, *, expires_in_seconds: float | None = None) -> Path:
        user = _pair(nkeys.PREFIX_BYTE_USER)
        claims: dict[str, Any] = {"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1}
        jwt = _sign(self._account, _public(user), claims, expires_in_seconds)
        path.write_text(
            f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
            "************************* IMPORTANT *************************\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n------END USER NKEY SEED------\n"
        )
        return path


def user_seed() -> tuple[str, str]:
    """A user's seed and public key."""
    pair = _pair(nkeys.PREFIX_BYTE_USER)
    return pair.seed.decode(), _public(pair)


def _pair(kind: int) -> Any:
    return nkeys.from_seed(bytearray(nkeys.encode_seed(os.urandom(32), kind)))


def _public(pair: Any) -> str:
    return str(pair.public_key.decode())


def _sign(issuer: Any, subject: str, claims: dict[str, Any], expires_in_seconds: float | None = None) -> str:
    now = int(time.time())
    body: dict[str, Any] = {"jti": os.urandom(16).hex(), "iat": now, "iss": _public(issuer), "name": "test"}
    body |= {"sub": subject, "nats": claims}
    if expires_in_seconds is not None:
        body["exp"] = int(now + expires_in_seconds)
    head = _part(json.dumps({"typ": "JWT", "alg": "ed25519-nkey"}).encode())
    signed = f"{head}.{_part(json.dumps(body).encode())}"
    return f"{signed}.{_part(issuer.sign(signed.encode()))}"


def _part(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
