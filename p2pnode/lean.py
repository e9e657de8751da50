"""Imports libraries without the parts that a sidecar never runs.

`import libp2p` brings QUIC, mDNS, a DHT, relays, databases and three HTTP clients along, and an HTTP/1.1
server HTTP/2 and WebSocket: half of their modules. While `without` is active, a module of that kind
is imported as an empty stand-in; calling anything in it is an error that names it. Afterwards the
stand-ins leave `sys.modules`, so that whoever really needs such a module gets the real one.
`bench.start` measures what it is good for.
"""

from __future__ import annotations

import importlib.abc
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import NoReturn

_METRICS = ("http.server", "urllib.request", "wsgiref.simple_server")
"""A server and a push gateway in prometheus_client, which both import; `/metrics` is a route of our API."""

LIBP2P = (
    # Other roads than TCP, Noise and yamux.
    "aioquic",
    "fastecdsa",
    "libp2p.relay",
    "libp2p.security.secio",
    "libp2p.security.tls",
    "libp2p.transport.quic",
    "libp2p.transport.websocket",
    "trio_websocket",
    # Other ways to find peers, to remember them and to be found.
    "cryptography.hazmat.primitives.serialization.ssh",
    "cryptography.x509",
    "httpx",
    "libp2p.discovery",
    "libp2p.kad_dht",
    "libp2p.peer.persistent",
    "miniupnpc",
    "requests",
    "rich",
    "sqlite3",
    "zeroconf",
    # Used by the library, and given to it in another form by `host.replaced`.
    "Crypto",
    "coincurve",
    "libp2p.rcmgr.manager",
    "multiaddr.resolvers",
    # For a log of its own; ours is in `p2pnode.logs`.
    "logging.handlers",
    # For the resource manager, and to list interfaces, which `host.addresses` does by itself.
    "psutil",
    *_METRICS,
)
"""What `host` leaves out of the library and of what the library imports."""

PROTOBUF = ("google.protobuf.internal.python_message",)
"""What `host` leaves out of protobuf where messages are made by its compiled core: the same in Python."""

API = (
    # `api.connection` speaks HTTP/1.1 without upgrades.
    "h2",
    "priority",
    "wsproto",
    # hypercorn's workers and its log files; here it serves a stream within our process.
    "logging.config",
    "multiprocessing",
    *_METRICS,
)
"""What `api` leaves out of the HTTP server and of the metrics library."""


class StandIn(type):
    """Its classes can be named, subclassed and tested against, but not called; nor have they anything in them."""

    def __call__(cls, *args: object, **kwargs: object) -> NoReturn:
        raise RuntimeError(f"{cls.__module__}.{cls.__qualname__} was left out: see {__name__}")

    def __getattr__(cls, name: str) -> NoReturn:
        raise AttributeError(f"{cls.__module__}.{cls.__qualname__}.{name} was left out: see {__name__}")


class StandInModule(ModuleType):
    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        # An exception class, so that `except` clauses that name it stay valid.
        made = StandIn(name, (Exception,), {"__module__": self.__name__})
        setattr(self, name, made)
        return made


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self.made: list[StandInModule] = []

    def find_spec(self, fullname: str, path: object, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname in self._names or fullname.startswith(tuple(f"{name}." for name in self._names)):
            return ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        self.made.append(StandInModule(spec.name))
        return self.made[-1]

    def exec_module(self, module: ModuleType) -> None: ...

    def forget(self) -> None:
        for module in self.made:
            sys.modules.pop(module.__name__, None)
            # An import also puts a module into its package, where `from package import module` looks first.
            package, _, name = module.__name__.rpartition(".")
            parent = sys.modules.get(package)
            if parent is not None and parent.__dict__.get(name) is module:
                delattr(parent, name)


@contextmanager
def without(names: Sequence[str]) -> Iterator[None]:
    """Stand-ins for `names` and what is below them, for imports in this block; loaded modules stay as they are."""
    finder = _Finder(names)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        finder.forget()
