"""What a TCP node never runs stays unimported, and whoever needs it later gets the real thing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from p2pnode.lean import API, LIBP2P, PROTOBUF, without
from tests.e2e.harness import environment, running_node, stop, wait_until
from tests.stacks import Stack, on_both_stacks

pytestmark = pytest.mark.slow

TOPIC = "councils.claims"

OTHERS_MAY_NEED = {
    "http.server",
    "httpx",
    "logging.config",
    "logging.handlers",
    "multiprocessing",
    "sqlite3",
    "urllib.request",
    "zeroconf",
}
"""Left out of the libraries, but nothing is wrong when another part of p2pnode imports it for itself."""

HOLDERS = {"google", "hypercorn", "libp2p", "multiaddr", "prometheus_client"}
"""Whose imports the lists were made for. A stand-in anywhere else would come to somebody who wants the real thing."""

WATCHED = """
import atexit, os
from p2pnode import lean

def tell(what):
    with open(os.environ["TOUCHED"], "a") as file:
        print(os.getpid(), what, file=file)

def called(cls, *args, **kwargs):
    tell(f"called {cls.__module__}.{cls.__qualname__}")
    raise RuntimeError(cls.__qualname__)

def read(cls, name):
    if not name.startswith("__"):
        tell(f"read {cls.__module__}.{cls.__qualname__}.{name}")
    raise AttributeError(name)

lean.StandIn.__call__, lean.StandIn.__getattr__ = called, read
atexit.register(lambda: tell("ended"))
"""


def fresh(code: str) -> str:
    """What a new interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("first", ["p2pnode.app", "p2pnode.fleet", "p2pnode.host.meshsub", "p2pnode.host.opening"])
def test_a_node_leaves_out_what_it_does_not_need_whatever_is_imported_first(first: str) -> None:
    left_out = set(LIBP2P + PROTOBUF + API) - OTHERS_MAY_NEED
    assert fresh(f"import sys, {first}, p2pnode.app; print(sorted({left_out!r} & set(sys.modules)))") == "[]"


@pytest.mark.parametrize(("package", "names"), [("p2pnode.host.opening", LIBP2P), ("p2pnode.api.server", API)])
def test_the_libraries_bring_in_nothing_of_their_list(package: str, names: tuple[str, ...]) -> None:
    assert fresh(f"import sys, {package}; print(sorted(set({names!r}) & set(sys.modules)))") == "[]"


def test_only_the_libraries_that_the_lists_are_for_hold_stand_ins() -> None:
    code = (
        "import sys, p2pnode.app; from p2pnode.lean import StandIn, StandInModule\n"
        "held = [(name, value) for name, module in list(sys.modules.items()) for value in vars(module).values()]\n"
        "print(*sorted({n.split('.')[0] for n, value in held if isinstance(value, (StandIn, StandInModule))}))"
    )
    assert set(fresh(code).split()) == HOLDERS


def test_where_protobuf_has_no_compiled_core_it_works_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")
    code = (
        "import p2pnode.app; from p2pnode.wire.pb.p2pnode.v1.sync_pb2 import SyncRequest as Request\n"
        "from google.protobuf.internal.api_implementation import Type\n"
        "print(Type(), Request.FromString(Request(upper_ns=7).SerializeToString()).upper_ns)"
    )
    assert fresh(code) == "python 7"


@on_both_stacks
def test_two_sidecars_live_together_without_touching_a_stand_in(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(WATCHED)
    touched = tmp_path / "touched"
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    env = environment(tmp_path / "run", PYTHONPATH=path, TOUCHED=str(touched), P2PNODE_TRANSPORT_STACK=stack)
    with running_node(tmp_path, "first", env=env) as first:
        named = first.bootstrap.replace("/ip4/127.0.0.1/", "/dns4/localhost/")
        nobody = f"/ip4/127.0.0.1/tcp/1/p2p/{first.bootstrap.rpartition('/')[2]}"
        with running_node(tmp_path, "second", "--bootstrap", nobody, "--bootstrap", named, env=env) as second:
            wait_until("they meet", lambda: any(topic["mesh"] for topic in second.get("/api/v1/topics")))
            for author, reader in ((first, second), (second, first)):
                sent = author.publish_accepted(TOPIC, b"{}")
                wait_until("it arrives", lambda reader=reader, sent=sent: sent in reader.ids(TOPIC))  # type: ignore[misc]
            assert second.metric("p2pnode_links") >= 0
            upgrade = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": ""}
            assert second.client.request("GET", "/health", headers=upgrade).status == 200
            pids = [node.process.pid for node in (first, second) if node.process is not None]
            assert stop(second) == 0
        assert stop(first) == 0
    assert sorted(touched.read_text().splitlines()) == sorted(f"{pid} ended" for pid in pids)


def test_a_left_out_module_can_be_imported_for_real_afterwards() -> None:
    real = "import p2pnode.app, sqlite3, httpx; print(httpx.Client.__name__, httpx.codes.OK, sqlite3.connect.__name__)"
    assert fresh(real) == "Client 200 connect"


@pytest.mark.parametrize("parent", ["cryptography", "http", "multiaddr"])
def test_a_package_whose_module_was_left_out_does_not_keep_the_stand_in(parent: str) -> None:
    name = {"cryptography": "x509", "http": "server", "multiaddr": "resolvers"}[parent]
    code = f"import p2pnode.app; from {parent} import {name}; print({name}.__file__ is not None)"
    assert fresh(code) == "True"


def test_calling_into_a_stand_in_names_it() -> None:
    with without(["no_such_library"]):
        from no_such_library.part import Thing, trouble  # type: ignore[import-not-found]
    with pytest.raises(RuntimeError, match=r"no_such_library\.part\.Thing was left out"):
        Thing()
    with pytest.raises(AttributeError, match=r"no_such_library\.part\.Thing\.new was left out"):
        Thing.new()
    assert issubclass(trouble, Exception)
    assert "no_such_library" not in sys.modules


def test_a_module_that_is_loaded_already_stays_as_it_is() -> None:
    with without(["json"]):
        import json
    assert json.loads("1") == 1
