"""Who we are for a NATS server: files and keys are read anew for each attempt, so that renewed ones count."""

from __future__ import annotations

import base64
import binascii
import json
import re
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2pnode.carriers.nats.settings import BrokerSettings


class Trouble(Exception):
    """Why the connection does not stand, or works less well than wanted.

    Args:
        code: of `BrokerState`.
        problem: what is wrong and where, in a sentence.
        fix: what the operator is to do.
    """

    def __init__(self, code: str, problem: str, fix: str) -> None:
        super().__init__(problem)
        self.code = code
        self.problem = problem
        self.fix = fix


@dataclass(frozen=True, slots=True)
class Credentials:
    """Arguments for nats-py, and until when they are good.

    Args:
        options: keyword arguments of `Client.connect`.
        expires: wall seconds at which the JWT ends; None when it does not.
    """

    options: dict[str, Any]
    expires: float | None = None

    def expired(self) -> bool:
        return self.expires is not None and time.time() >= self.expires


def read_credentials(settings: BrokerSettings) -> Credentials:
    """
    Raises:
        Trouble: `credentials`: a file is missing or holds something else.
    """
    if settings.creds_file is not None:
        return _creds(settings.creds_file)
    if settings.nkey:
        return Credentials({"nkeys_seed_str": _nkey(settings.nkey)})
    if settings.user:
        return Credentials({"user": settings.user, "password": settings.password})
    if settings.token:
        return Credentials({"token": settings.token})
    return Credentials({})


def _creds(path: Path) -> Credentials:
    from nats.aio.client import RawCredentials

    text = _read(path, "nats.creds_file")
    jwt = _block(text, "NATS USER JWT")
    seed = _block(text, "USER NKEY SEED")
    if not jwt or not seed:
        missing = "user JWT" if not jwt else "seed"
        raise Trouble(
            "credentials",
            f"{path} (nats.creds_file) holds no {missing}",
            "write the file again with `nsc generate creds`",
        )
    _check_seed(seed, f"{path} (nats.creds_file)")
    # nats-py takes the line after each heading, less its last character.
    canonical = (
        f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )
    return Credentials({"user_credentials": RawCredentials(canonical)}, _expiry(jwt, path))


def _block(text: str, name: str) -> str:
    found = re.search(rf"-+BEGIN {name}-+\s+(\S+)\s+-+END {name}-+", text)
    return found.group(1) if found else ""


def _expiry(jwt: str, path: Path) -> float | None:
    try:
        head, payload, _ = jwt.split(".")
        _, claims = (json.loads(base64.urlsafe_b64decode(each + "=" * (-len(each) % 4))) for each in (head, payload))
        expires = claims.get("exp")
        return float(expires) if expires else None
    except (ValueError, binascii.Error, AttributeError, TypeError):
        raise Trouble(
            "credentials",
            f"the user JWT in {path} (nats.creds_file) cannot be read",
            "write the file again with `nsc generate creds`",
        ) from None


_SEED = re.compile(r"SU[A-Z2-7]*|.*[A-Z2-7]{40}.*", re.DOTALL)
"""What is or may be a seed, mistyped or with something around it: never taken for a path, which messages show."""


def _nkey(value: str) -> str:
    if _SEED.fullmatch(value):
        seed = value.strip()
        _check_seed(seed, "nats.nkey")
        return seed
    seed = _read(Path(value), "nats.nkey").strip()
    _check_seed(seed, f"{value} (nats.nkey)")
    return seed


def _check_seed(seed: str, where: str) -> None:
    import nkeys  # type: ignore[import-untyped]

    try:
        pair = nkeys.from_seed(bytearray(seed.encode()))
        wrong = "" if pair.public_key.startswith(b"U") else "a seed, but no user's"
        pair.wipe()
    except Exception:  # nkeys raises what its parts raise: its own errors, binascii's, PyNaCl's, IndexError
        wrong = "no nkey seed"
    if wrong:
        raise Trouble("credentials", f"{where} holds {wrong}", "give the user's seed, which begins with SU")


def _read(path: Path, key: str) -> str:
    try:
        return path.read_text(encoding="ascii")
    except UnicodeDecodeError:
        raise Trouble("credentials", f"{path} ({key}) is no text file", "name the right file") from None
    except OSError as error:
        raise Trouble(
            "credentials",
            f"{path} ({key}) cannot be read: {error.strerror}",
            "name a file that this process may read",
        ) from None


def tls_context(settings: BrokerSettings) -> ssl.SSLContext:
    """The context for TLS; verifies the server's certificate and name.

    Raises:
        Trouble: `tls`: a file is missing or holds something else.
    """
    ca, cert, key = settings.tls_ca_file, settings.tls_cert_file, settings.tls_key_file
    try:
        context = ssl.create_default_context(cafile=str(ca) if ca else None)
    except (OSError, ssl.SSLError) as error:
        raise Trouble(
            "tls", f"{ca} (nats.tls_ca_file) holds no certificates: {_said(error)}", "name a PEM file of certificates"
        ) from None
    if cert is not None:
        try:
            # An encrypted key must fail; without a function OpenSSL asks the terminal.
            context.load_cert_chain(str(cert), str(key) if key else None, password=lambda: b"")
        except (OSError, ssl.SSLError, ValueError) as error:
            named = f"{cert} (nats.tls_cert_file)" + (f" and {key} (nats.tls_key_file)" if key else "")
            raise Trouble(
                "tls", f"{named} cannot be used: {_said(error)}", "name a PEM certificate and its unencrypted key"
            ) from None
    return context


def _said(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
