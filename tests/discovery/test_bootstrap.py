"""A bootstrap file as a source: read again when it changes, whatever is in it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.config.addresses import check_dialable
from p2pnode.discovery.bootstrap import MOST_BYTES, MOST_LINES, BootstrapFile, parse_places
from p2pnode.ports import SourceReport
from tests.cli.running import p2pnode
from tests.discovery.permissions import unprivileged
from tests.discovery.reports import addrs, codes, running
from tests.properties import many, some

PEER = "12D3KooWHEyFFA461o2sADbgWKNrDz8zhmKezgqfdAoKsZPHjdEE"
ONE, TWO = "/ip4/10.0.1.3/tcp/9000", f"/dns4/boot.test/tcp/9001/p2p/{PEER}"
EXAMPLES = Path(__file__).parents[2] / "bootstrap"
LOOK_SECONDS = 0.01


def source(path: Path) -> BootstrapFile:
    return BootstrapFile(path, look_seconds=LOOK_SECONDS)


def write(path: Path, content: str | bytes) -> None:
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def problem(report: SourceReport) -> str:
    assert codes(report) == ["bootstrap-file"]
    assert report.troubles[0].fix
    return report.troubles[0].problem


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "peers.txt"


async def test_each_line_is_a_place_and_comments_are_not(path: Path) -> None:
    write(path, f"# ours\n\n{ONE}\n  {TWO}  # the second\r\n#{ONE}x\n\t\n{ONE}\n")
    async with running(source(path)) as reports:
        report = await reports.first()
    assert addrs(report) == [ONE, TWO]
    assert (report.method, report.subject, report.troubles) == ("bootstrap", f"file:{path}", ())


async def test_a_byte_order_mark_is_no_part_of_the_first_line(path: Path) -> None:
    write(path, b"\xef\xbb\xbf" + ONE.encode())
    async with running(source(path)) as reports:
        assert addrs(await reports.first()) == [ONE]


async def test_a_file_written_again_is_read_again(path: Path) -> None:
    write(path, ONE)
    async with running(source(path)) as reports:
        await reports.first()
        write(path, f"{ONE}\n{TWO}")
        await reports.until(lambda report: addrs(report) == [ONE, TWO])


async def test_a_change_that_keeps_size_and_time_is_seen(path: Path) -> None:
    write(path, "/ip4/10.0.1.3/tcp/9000")
    then = 1_700_000_000_000_000_000
    os.utime(path, ns=(then, then))
    async with running(source(path)) as reports:
        await reports.first()
        write(path, "/ip4/10.0.1.4/tcp/9000")
        os.utime(path, ns=(then, then))
        await reports.until(lambda report: addrs(report) == ["/ip4/10.0.1.4/tcp/9000"])


async def test_a_file_replaced_at_once_is_read_again(path: Path) -> None:
    write(path, ONE)
    async with running(source(path)) as reports:
        await reports.first()
        new = path.with_suffix(".new")
        write(new, TWO)
        new.rename(path)
        await reports.until(lambda report: addrs(report) == [TWO])


async def test_symbolic_links_are_followed_as_they_change(path: Path) -> None:
    """Kubernetes: `peers.txt -> ..data/peers.txt`, and `..data` is turned to another directory."""
    for name, addr in (("first", ONE), ("second", TWO)):
        (path.parent / name).mkdir()
        (path.parent / name / "peers.txt").write_text(addr)
    data = path.parent / "..data"
    data.symlink_to("first")
    os.symlink("..data/peers.txt", path)
    async with running(source(path)) as reports:
        assert addrs(await reports.first()) == [ONE]
        turned = path.parent / "..data_tmp"
        turned.symlink_to("second")
        turned.rename(data)
        await reports.until(lambda report: addrs(report) == [TWO])


async def test_what_does_not_change_is_reported_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[Path] = []
    enough = trio.Event()
    look = Path.expanduser

    def counted(self: Path) -> Path:
        looks.append(self)
        if len(looks) == 5:
            trio.from_thread.run_sync(enough.set)
        return look(self)

    monkeypatch.setattr(Path, "expanduser", counted)
    write(path, ONE)
    async with running(source(path)) as reports:
        write(path.with_suffix(".other"), TWO)
        with trio.fail_after(60):
            await enough.wait()
        assert len(reports.all) == 1


async def test_a_bad_line_is_named_and_the_good_ones_count(path: Path) -> None:
    write(path, f"{ONE}\nlocalhost:9000\n/ip4/10.0.1.3/udp/9000\n{TWO}x\ndns:tasks.chorus\n{TWO}\n")
    async with running(source(path)) as reports:
        report = await reports.first()
    assert addrs(report) == [ONE, TWO]
    told = [trouble.problem for trouble in report.troubles]
    assert codes(report) == ["bootstrap-file"] * 4
    assert told[0].startswith(f"{path} line 2: 'localhost:9000' is no multiaddr")
    assert told[1].startswith(f"{path} line 3: ")
    assert "this version dials TCP only" in told[1]
    assert "no peer id" in told[2]
    assert "line 5: 'dns:tasks.chorus' stands in network.bootstrap" in told[3]


async def test_many_bad_lines_are_bounded(path: Path) -> None:
    write(path, "nonsense\n" * 500 + ONE)
    async with running(source(path)) as reports:
        report = await reports.first()
    assert addrs(report) == [ONE]
    assert len(report.troubles) == 21
    assert "480 more bad lines, from line 21" in report.troubles[-1].problem


async def test_a_line_without_an_end_is_told_by_its_length(path: Path) -> None:
    write(path, "/ip4/" + "1" * 900_000)
    async with running(source(path)) as reports:
        report = await reports.first()
    assert "line 1: has 900005 characters" in problem(report)
    assert len(problem(report)) < 400


async def test_more_than_a_thousand_addresses_are_bounded(path: Path) -> None:
    write(path, "# many\n" + "".join(f"/ip4/10.0.{i // 250}.{i % 250 + 1}/tcp/9000\n" for i in range(1200)))
    async with running(source(path)) as reports:
        report = await reports.first()
    assert len(report.places) == MOST_LINES
    assert "more than 1000 addresses: none is read from line 1002" in problem(report)


@pytest.mark.parametrize("content", ["", "\n\n", "# nothing yet\n"])
async def test_a_file_without_addresses_is_a_trouble(path: Path, content: str) -> None:
    write(path, content)
    async with running(source(path)) as reports:
        report = await reports.first()
    assert report.places == ()
    assert "holds no address" in problem(report)


async def test_a_missing_file_is_a_trouble_until_it_is_there(path: Path) -> None:
    async with running(source(path)) as reports:
        report = await reports.first()
        assert problem(report) == f"{path} does not exist"
        write(path, ONE)
        report = await reports.until(lambda report: bool(report.places))
        assert (addrs(report), report.troubles) == ([ONE], ())


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"# ok\n/ip4/\xff\xfe/tcp/9000\n", "is no UTF-8: line 2, byte 10 of the file"),
        (b"#" * (MOST_BYTES + 1), f"has {MOST_BYTES + 1} bytes, more than the {MOST_BYTES}"),
        (None, "does not exist"),
        ("directory", "is no regular file"),
        ("pipe", "is no regular file"),
        ("link to itself", "cannot be read: Too many levels of symbolic links"),
    ],
    ids=["not-utf-8", "too-large", "gone", "directory", "pipe", "loop"],
)
async def test_a_file_that_becomes_useless_keeps_its_last_places(
    path: Path, content: bytes | str | None, why: str
) -> None:
    write(path, ONE)
    async with running(source(path)) as reports:
        good = await reports.first()
        _become(path, content)
        report = await reports.until(lambda report: bool(report.troubles))
        assert why in problem(report)
        assert report.places == good.places
        _become(path, TWO.encode())
        report = await reports.until(lambda report: not report.troubles)
        assert addrs(report) == [TWO]


def _become(path: Path, content: bytes | str | None) -> None:
    new = path.with_suffix(".new")
    if path.is_dir():
        path.rmdir()
    elif content is None or content == "directory":
        path.unlink()
    match content:
        case bytes():
            new.write_bytes(content)
            new.rename(path)
        case "directory":
            path.mkdir()
        case "pipe":
            os.mkfifo(new)
            new.rename(path)
        case "link to itself":
            new.symlink_to(path)
            new.rename(path)


async def test_a_file_without_permission_is_read_once_it_is_given(path: Path) -> None:
    write(path, ONE)
    os.chmod(path, 0)
    async with running(source(path)) as reports:
        with unprivileged():
            report = await reports.first()
        assert "cannot be read: Permission denied" in problem(report)
        os.chmod(path, 0o600)
        await reports.until(lambda report: bool(report.places))


async def test_the_home_directory_is_a_tilde(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(path.parent))
    write(path, ONE)
    async with running(source(Path("~") / path.name)) as reports:
        report = await reports.first()
    assert (addrs(report), report.subject) == ([ONE], "file:~/peers.txt")


LINES = st.sampled_from([ONE, TWO, "# note", "", "/ip4/1.2.3.4/tcp/0", "/", "/ip4/0.0.0.0/tcp/9", f"{ONE} #", "dns:x"])


@given(st.lists(st.one_of(LINES, st.text(max_size=60)), max_size=40).map("\n".join))
@many
def test_whatever_a_file_says_its_places_can_be_dialled(text: str) -> None:
    places, troubles = parse_places(text, Path("peers.txt"))
    assert all(check_dialable(place.addr) == place.addr for place in places)
    assert len(set(places)) == len(places)
    assert places or troubles
    wanted = {line.partition("#")[0].strip() for line in text.split("\n")} & {ONE, TWO}
    assert wanted <= {place.addr for place in places}


@given(content=st.binary(max_size=200))
@some
async def test_whatever_bytes_a_file_holds_there_is_a_report(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("bytes") / "peers.txt"
    path.write_bytes(content)
    async with running(source(path)) as reports:
        report = await reports.first()
    assert report.places or report.troubles


# What is handed out in bootstrap/


async def test_the_example_list_is_read_without_trouble() -> None:
    async with running(source(EXAMPLES / "peers.txt")) as reports:
        report = await reports.first()
    assert report.troubles == ()
    assert len(report.places) >= 2
    assert any("/p2p/" in addr for addr in addrs(report))


def test_the_configuration_of_a_bootstrap_node_is_accepted(tmp_path: Path) -> None:
    env = {"P2PNODE_CONFIG": "", "P2PNODE_NODE_ROLE": ""}
    outcome = p2pnode("config", "check", "--config", str(EXAMPLES / "bootstrap.toml"), env=env, cwd=tmp_path)
    assert (outcome.returncode, outcome.stderr) == (0, "")
    shown = p2pnode("config", "show", "--config", str(EXAMPLES / "bootstrap.toml"), env=env, cwd=tmp_path).stdout
    assert "bootstrap" in shown
    assert "/var/lib/p2pnode" in shown
