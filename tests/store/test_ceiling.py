"""The ceiling of sequence numbers on disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from p2pnode.errors import EnvironmentFault, InvalidRequest
from p2pnode.store.ceiling import SeqnoFile


async def test_a_stored_ceiling_survives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "seqno"
    assert SeqnoFile(path).load() == 0
    for ceiling in (5, 1_763_899_200_000_000_000):
        await SeqnoFile(path).reserve(ceiling)
        assert SeqnoFile(path).load() == ceiling
    assert os.listdir(tmp_path) == ["seqno"]


@pytest.mark.parametrize(
    "content", [b"", b"five", b"-5", b"5.0", b"5 6", b"\xff\xfe", "٣".encode(), b"9" * 20, b"9" * 5000]
)
def test_a_damaged_file_is_refused_with_what_to_do(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "seqno"
    path.write_bytes(content)
    with pytest.raises(InvalidRequest, match="remove it"):
        SeqnoFile(path)
    assert path.read_bytes() == content


def test_an_unreadable_file_is_the_environments_fault(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="cannot read"):
        SeqnoFile(tmp_path)


async def test_a_ceiling_that_cannot_be_written_is_refused_and_the_old_one_stands(tmp_path: Path) -> None:
    path = tmp_path / "seqno"
    store = SeqnoFile(path)
    await store.reserve(5)
    (tmp_path / "seqno.new").mkdir()
    with pytest.raises(EnvironmentFault, match="cannot write"):
        await store.reserve(6)
    assert store.load() == 5
