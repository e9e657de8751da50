"""One process per data directory, with a real second process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from p2pnode.errors import EnvironmentFault
from p2pnode.store.lock import locked_data_dir

HOLDER = """
import sys
from pathlib import Path
from p2pnode.store.lock import locked_data_dir
with locked_data_dir(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    with another_holder(tmp_path) as process:
        with (
            pytest.raises(EnvironmentFault, match=rf"in use by another p2pnode \(pid {process.pid}\)"),
            locked_data_dir(tmp_path),
        ):
            raise AssertionError("entered")
        process.kill()
        process.wait()
        with locked_data_dir(tmp_path):
            assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


def test_a_refused_process_leaves_the_holders_lock_alone(tmp_path: Path) -> None:
    with locked_data_dir(tmp_path):
        result = subprocess.run(
            [sys.executable, "-c", HOLDER, str(tmp_path)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 1
        assert f"pid {os.getpid()}" in result.stderr
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


def test_a_directory_is_made_for_its_owner_alone_and_can_be_locked_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "data"
    for _ in range(2):
        with locked_data_dir(path) as held:
            assert held == path
    assert path.stat().st_mode & 0o777 == 0o700
    assert (path / "lock").stat().st_mode & 0o777 == 0o600


def test_what_is_no_directory_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(EnvironmentFault, match="--data-dir"), locked_data_dir(path):
        raise AssertionError("entered")


def test_a_directory_that_cannot_be_made_is_refused() -> None:
    # Not even root can make one there.
    with pytest.raises(EnvironmentFault, match="cannot use"), locked_data_dir(Path("/proc/p2pnode")):
        raise AssertionError("entered")
