"""The key file: private, never overwritten, refused when damaged."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

from p2pnode.errors import EnvironmentFault, InvalidRequest
from p2pnode.identity import KEY_FILE_NAME, Identity, create_key_file, load_key_file, open_identity, verifier_for


def test_the_first_start_makes_a_private_key_file_and_the_next_reads_it(tmp_path: Path) -> None:
    first = open_identity(tmp_path)
    assert open_identity(tmp_path) == first
    assert os.listdir(tmp_path) == [KEY_FILE_NAME]
    assert (tmp_path / KEY_FILE_NAME).stat().st_mode & 0o777 == 0o600


def test_a_key_file_is_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        create_key_file(tmp_path / "new" / "key")
    finally:
        os.umask(before)
    assert (tmp_path / "new" / "key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o610, 0o601, 0o777])
def test_a_looser_mode_is_refused_with_the_command_that_helps(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    create_key_file(path)
    path.chmod(mode)
    with pytest.raises(EnvironmentFault, match=rf"{mode:04o}(.|\n)*chmod 600 {path}"):
        load_key_file(path)


def test_a_stricter_mode_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "key"
    identity = create_key_file(path)
    path.chmod(0o400)
    assert load_key_file(path) == identity


def test_a_file_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("mine")
    with pytest.raises(InvalidRequest, match="never overwritten"):
        create_key_file(path)
    assert path.read_text() == "mine"
    assert os.listdir(tmp_path) == ["key"]


def test_what_a_crashed_start_left_behind_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / f".{KEY_FILE_NAME}.{os.getpid()}").touch()
    assert open_identity(tmp_path) == open_identity(tmp_path)


def damaged(identity: Identity) -> list[bytes]:
    raw = identity.encode_private_key()
    other = Identity(b"o" * 32).encode_private_key()
    return [
        b"",
        b"\n",
        b"not base64!",
        b"\xff\xfe",
        base64.b64encode(raw[:-1]),
        base64.b64encode(raw + b"x"),
        base64.b64encode(b"\x08\x00" + raw[2:]),
        base64.b64encode(raw[:36] + other[36:]),
        base64.b64encode(raw)[:-4],
        base64.b64encode(raw) + b"\n" + base64.b64encode(raw),
        b"A" * 10_000,
    ]


@pytest.mark.parametrize("case", range(11))
def test_a_damaged_key_is_refused_and_left_as_it_is(tmp_path: Path, case: int) -> None:
    path = tmp_path / KEY_FILE_NAME
    content = damaged(Identity(b"i" * 32))[case]
    path.touch(0o600)
    path.write_bytes(content)
    with pytest.raises(InvalidRequest, match="key file"):
        open_identity(tmp_path)
    assert path.read_bytes() == content


def test_what_is_no_file_is_the_environments_fault(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="cannot read"):
        load_key_file(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentFault, match="cannot write"):
        create_key_file(tmp_path / "file" / "key")


def test_a_key_never_shows_in_its_repr() -> None:
    identity = Identity(b"S" * 32)
    assert "SSSS" not in repr(identity)
    assert "_signer" not in repr(identity)


def test_an_identity_signs_what_its_peer_id_verifies() -> None:
    identity = Identity.generate()
    verify = verifier_for(identity.peer_id_bytes, b"")
    assert verify(b"data", identity.sign(b"data"))
    assert not verify(b"other", identity.sign(b"data"))
    assert identity.peer_id.startswith("12D3KooW")
