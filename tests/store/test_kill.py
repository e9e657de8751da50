"""What was acknowledged is there after kill -9, by real processes."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from p2pnode.store.database import DATABASE_NAME
from p2pnode.store.maintenance import check
from p2pnode.store.messages import open_messages
from tests.store.kit import ROOT, body, message_id

ROUNDS = 20


@pytest.mark.slow
async def test_killed_at_any_moment_it_has_all_that_was_acknowledged(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    path = tmp_path / DATABASE_NAME
    acknowledged: set[int] = set()
    for number in range(ROUNDS):
        acknowledged |= _live_and_die(tmp_path, rng.randint(1, 400))
        # Now and then nobody looks between two deaths: the next process recovers by itself.
        if number % 4 == 0:
            assert check(path).problems == [], f"seed {seed}, round {number}"
    assert len(acknowledged) >= ROUNDS
    async with open_messages(path) as store:
        contents = await store.load()
        kept = {each.arrival: each for each in contents.entries}
        assert acknowledged <= kept.keys(), f"seed {seed}"
        assert contents.last_arrival >= max(acknowledged)
        raw = await store.read([message_id(each) for each in kept])
    assert raw == {message_id(each): body(each, kept[each].size) for each in kept}, f"seed {seed}"


def _live_and_die(directory: Path, lines: int) -> set[int]:
    """The numbers that a process acknowledged which was killed after so many of them."""
    command = [sys.executable, "-m", "tests.store.child", "acknowledge", str(directory)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            told = [process.stdout.readline() for _ in range(lines)]
        finally:
            process.kill()
        # What it said before it died counts as well.
        told += process.stdout.read().splitlines(keepends=True)
    assert process.returncode == -signal.SIGKILL
    return {int(line) for line in told if line.endswith(b"\n")}
