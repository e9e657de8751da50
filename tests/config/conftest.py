"""What the tests of configuration, paths and logs share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from p2pnode.config import Loaded, load_settings
from p2pnode.errors import Fault, InvalidConfig

Load = Callable[..., Loaded]
Faults = Callable[..., dict[str, str]]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Load from TOML text, variables and flags; nothing of the machine's environment leaks in."""

    def run(toml: str | None = None, env: Mapping[str, str] | None = None, **flags: object) -> Loaded:
        file = None
        if toml is not None:
            file = tmp_path / "p2pnode.toml"
            file.write_text(toml, encoding="utf-8")
        given = {f"--{name.replace('_', '-')}": value for name, value in flags.items()}
        return load_settings(given, {"HOME": "/home/agent", **(env or {})}, file)

    return run


@pytest.fixture
def faults(load: Load, tmp_path: Path) -> Faults:
    """Load what must be refused; the faults as field to problem, the file's path shortened to FILE."""

    def run(toml: str | None = None, env: Mapping[str, str] | None = None, **flags: object) -> dict[str, str]:
        with pytest.raises(InvalidConfig) as caught:
            load(toml, env, **flags)
        found: tuple[Fault, ...] = caught.value.faults
        assert str(len(found)) in caught.value.detail
        return {each.field.replace(str(tmp_path / "p2pnode.toml"), "FILE"): each.problem for each in found}

    return run
