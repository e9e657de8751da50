"""What went wrong with a connection, told so that an operator knows what to do."""

from __future__ import annotations

import os
import socket
import ssl
from urllib.parse import urlsplit

from nats.errors import BadHeaderError, BadSubjectError, MaxPayloadError

from p2pnode.carriers.nats.client import ApiFault, PlaintextServer
from p2pnode.carriers.nats.credentials import Credentials, Trouble
from p2pnode.carriers.nats.settings import BrokerSettings

UNPUBLISHABLE = (BadSubjectError, BadHeaderError, MaxPayloadError)

_FULL = (10023, 10047, 10077, 10110, 10122)
"""`err_code`s of a server or stream that takes no more: resources, storage, maximum messages or bytes, memory."""

SILENT = Trouble(
    "stream",
    "JetStream at the NATS server does not answer",
    "check the server's log; a cluster needs most of its servers. To go on without it set nats.jetstream to off",
)

_REFUSED = ("authorization violation", "authentication timeout", "account authentication expired", "permissions")


def explain(
    error: BaseException, server: str, settings: BrokerSettings, credentials: Credentials | None, *, stood: bool
) -> Trouble:
    """Why an attempt to connect ended, or a connection that `stood`."""
    if isinstance(error, Trouble):
        return error
    text = str(error).removeprefix("nats: ").strip("' ") or type(error).__name__
    expired = credentials is not None and credentials.expired()
    if "authentication expired" in text.lower() or (expired and "authorization violation" in text.lower()):
        return Trouble(
            "credentials-expired",
            f"the user JWT in {settings.creds_file} has expired, says {server}",
            "write new credentials into that file (`nsc generate creds`); they are read again at each attempt",
        )
    if any(each in text.lower() for each in _REFUSED):
        return Trouble("authorization", f"{server} refuses {_who(settings)}: {text}", _authorization_fix(settings))
    if isinstance(error, PlaintextServer) or "WRONG_VERSION_NUMBER" in text or "RECORD_LAYER_FAILURE" in text:
        return Trouble(
            "plaintext",
            f"{server} does not use TLS, and tls:// was asked for; nothing was sent to it",
            "switch TLS on at the server, or write nats:// in nats.url if the network between is trusted",
        )
    if isinstance(error, ssl.SSLCertVerificationError):
        return Trouble(
            "tls",
            f"the certificate of {server} is not accepted: {error.verify_message}",
            "set nats.tls_ca_file to what signed it, and name the server in nats.url as its certificate does",
        )
    if isinstance(error, ssl.SSLError):
        return Trouble("tls", f"TLS with {server} failed: {_reason(error)}", _tls_fix(settings, _reason(error)))
    if isinstance(error, ConnectionResetError | BrokenPipeError) and server.startswith("tls://") and not stood:
        # What TLS 1.3 says of a certificate may be lost with the connection.
        reason = "it closed the connection" + (
            "" if settings.tls_cert_file else ", as servers that want a certificate do"
        )
        return Trouble("tls", f"TLS with {server} failed: {reason}", _tls_fix(settings, "certificate"))
    if isinstance(error, UnicodeError | ValueError) or "connect url" in text:
        # Python quotes what stands where the port should: it may be the rest of a password.
        text = text.partition(" as ")[0]
        port = server.rpartition(":")[2]
        if port.isdecimal() and int(port) > 65535:
            text = "its port is out of range: 1 to 65535"
        return Trouble("url", f"{server} cannot be used: {text}", "write nats://HOST:PORT or tls://HOST:PORT")
    what = "the connection ended" if stood else "cannot be reached"
    return Trouble("unreachable", f"{server}: {what}: {_network(error, text)}", _reach_fix(server))


def full(fault: ApiFault) -> Trouble | None:
    """Does it mean that the stream, or the server's store, takes no more?"""
    if fault.number not in _FULL and "maximum" not in fault.description and "insufficient" not in fault.description:
        return None
    return Trouble(
        "jetstream-full",
        f"JetStream takes no more: {fault.description}",
        "raise the stream's or the account's limits, or let the stream discard its oldest messages",
    )


def shown(url: str) -> str:
    """A server's URL without credentials."""
    try:
        parts = urlsplit(url)
        host = f"[{parts.hostname}]" if parts.hostname and ":" in parts.hostname else parts.hostname
    except ValueError:
        return "nats.url"
    try:
        return f"{parts.scheme}://{host}:{parts.port or 4222}"
    except ValueError:
        # The rest of a password with a slash in it may stand where the port should.
        port = parts.netloc.rpartition(":")[2]
        rest = parts.path + parts.query + parts.fragment
        return f"{parts.scheme}://{host}:{port}" if port.isdecimal() and "@" not in rest else "nats.url"


def _who(settings: BrokerSettings) -> str:
    if settings.creds_file is not None:
        return f"the user of {settings.creds_file}"
    if settings.nkey:
        return "the user of nats.nkey"
    if settings.user:
        return f"user {settings.user}"
    return "the token of nats.token" if settings.token else "a client without credentials"


def _authorization_fix(settings: BrokerSettings) -> str:
    if settings.creds_file is not None or settings.nkey:
        return "check that the server knows this key's account and user"
    if settings.user or settings.token:
        return "check nats.user and nats.password, or nats.token, against the server's configuration"
    return "set nats.user and nats.password, nats.token, nats.nkey or nats.creds_file"


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).replace("_", " ").lower()


def _tls_fix(settings: BrokerSettings, reason: str) -> str:
    if "certificate" in reason and settings.tls_cert_file is None:
        return "the server asks for a certificate: set nats.tls_cert_file and nats.tls_key_file"
    return "compare the certificates and TLS versions of both sides"


def _network(error: BaseException, text: str) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, socket.gaierror):
        return "its name is not known"
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else text


def _reach_fix(server: str) -> str:
    return f"start it, or correct nats.url; `nats-server` must listen at {server.partition('://')[2]}"
