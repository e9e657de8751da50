"""What a TCP node never runs stays unimported, and whoever needs it later gets the real thing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from p2pnode.host.lean import UNUSED, without


def fresh(code: str) -> str:
    """What a new interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("first", ["p2pnode.app", "p2pnode.fleet", "p2pnode.host.meshsub", "p2pnode.host.opening"])
def test_a_node_leaves_out_what_it_does_not_need_whatever_is_imported_first(first: str) -> None:
    code = f"import sys, {first}, p2pnode.app; print(sorted(set({UNUSED!r}) & set(sys.modules)))"
    assert fresh(code) == "[]"


def test_a_left_out_module_can_be_imported_for_real_afterwards() -> None:
    assert fresh("import p2pnode.host.library, httpx; print(httpx.Client.__name__, httpx.codes.OK)") == "Client 200"


def test_calling_into_a_stand_in_names_it() -> None:
    with without(["no_such_library"]):
        from no_such_library.part import Thing, trouble  # type: ignore[import-not-found]
    with pytest.raises(RuntimeError, match=r"no_such_library\.part\.Thing was left out"):
        Thing()
    assert issubclass(trouble, Exception)
    assert "no_such_library" not in sys.modules


def test_a_module_that_is_loaded_already_stays_as_it_is() -> None:
    with without(["json"]):
        import json
    assert json.loads("1") == 1
