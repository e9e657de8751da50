"""Disks that are full, limited or read-only, for real: a small tmpfs in a mount namespace, a limit on file sizes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from p2pnode.errors import StorageFull
from p2pnode.store.database import DATABASE_NAME, open_database
from p2pnode.store.messages import open_messages
from p2pnode.store.reserve import LEAST_BYTES, RESERVE_BYTES, Reserve
from tests.e2e.cable import needs_cables
from tests.store.kit import ROOT, add


def child(what: str, data: Path, *within: str, argument: int = 0) -> Any:
    command = [*within, sys.executable, "-m", "tests.store.child", what, str(data), str(argument)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def mounted(script: str) -> Sequence[str]:
    """Goes before a command that is to run with mounts of its own."""
    return ("unshare", "--map-root-user", "--mount", "sh", "-c", f'{script} && exec "$@"', "sh")


@needs_cables
@pytest.mark.parametrize("megabytes", [3, 12, 40])
def test_a_full_disk_refuses_what_is_new_keeps_the_rest_and_can_forget(tmp_path: Path, megabytes: int) -> None:
    data = tmp_path / "data"
    data.mkdir()
    small = mounted(f"mount -t tmpfs -o size={megabytes}m none {data}")
    told = child("until-full", data, *small, argument=megabytes)
    assert told["first"] > 20
    assert re.search(rf"no space to store anything in {data}/{DATABASE_NAME}: .* \([\d,]+ bytes free", told["detail"])
    assert "storing goes on once there is room" in told["hint"]
    assert told["failed"] == 10
    assert told["after drop"] == told["first"] - told["first"] // 2
    assert told["again"] > told["first"], "what was forgotten made room"
    assert told["kept"] == list(range(told["forgotten"] + 1, told["last"] + 1)), (
        "all that was acknowledged and not forgotten"
    )
    assert told["cursor"] == told["first"]
    assert told["cycles"] == 40, "on a full disk it goes on for ever by forgetting"
    assert told["whole"]


def test_a_limit_on_file_sizes_is_a_full_disk(tmp_path: Path) -> None:
    told = child("file-limit", tmp_path)
    assert "2,097,152 bytes (ulimit -f)" in told["detail"]
    assert told["kept"] == told["acknowledged"] + 5


@needs_cables
async def test_a_read_only_disk_is_named_and_nothing_else_is_said(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    over = mounted(f"mount --bind {data} {data} && mount -o remount,bind,ro {data}")
    told = child("refused", data, *over)
    assert told["detail"].endswith("Read-only file system"), "it cannot be made"
    async with open_messages(data / DATABASE_NAME) as store:
        await store.write([add(1)], full=True)
    told = child("refused", data, *over)
    assert str(data / DATABASE_NAME) in told["detail"]
    assert "Read-only file system" in told["detail"]
    assert "writable for this user" in told["hint"]


@needs_cables
def test_a_disk_without_room_for_a_new_store_says_so(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    told = child("refused", data, *mounted(f"mount -t tmpfs -o size=16k none {data}"))
    assert "no space to store anything" in told["detail"]


async def test_the_reserve_is_kept_between_runs_and_made_again_when_there_is_space(tmp_path: Path) -> None:
    path = tmp_path / DATABASE_NAME
    reserve = Reserve(path)
    async with open_messages(path) as store:
        assert LEAST_BYTES <= reserve.size() <= RESERVE_BYTES
        assert reserve.release()
        assert not reserve.release()
        await store.write([add(1)], full=False)
        size = reserve.size()
        assert size >= LEAST_BYTES
    assert reserve.size() == size


async def test_no_space_at_the_start_gives_the_reserve_up_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / DATABASE_NAME
    tried = []

    def full_once(where: Path) -> Any:
        tried.append(Reserve(where).size() > 0)
        if tried[-1]:
            raise StorageFull("no space")
        return open_database(where)

    monkeypatch.setattr("p2pnode.store.writer.open_database", full_once)
    Reserve(path).fill()
    async with open_messages(path) as store:
        await store.write([add(1)], full=True)
    assert tried == [True, False]
