"""`peers`: forms, filters, order, waiting."""

from __future__ import annotations

import json

import pytest

from p2pnode.cli.peers import SAME_NAME, WIDE
from tests.cli.documents import NOW, member
from tests.cli.running import Outcome, Run
from tests.local.fake import FakeSidecar, document_answer

MEMBERS = [
    member("b", rtt_ms=None, connected=False, direction=None, state="dead", last_seen=None, tasks_completed=9),
    member("c", capabilities=["go"], rtt_ms=30.0, mesh=["hmmm.x"], direction="inbound", tasks_completed=10),
    member("w", "whoosh", capabilities=[], rtt_ms=2.0, self=True, state="suspect", mesh=[]),
    member("a", rtt_ms=0.04),
]


@pytest.fixture
def peers(run: Run, sidecar: FakeSidecar) -> Run:
    sidecar.serves("/api/v1/peers", MEMBERS)
    return lambda *arguments: run("peers", "--api", sidecar.api, *arguments)


def names(outcome: Outcome) -> list[str]:
    return [row["name"] for row in json.loads(outcome.out)]


def test_rows_are_by_role_name_and_peer_id(peers: Run) -> None:
    assert names(peers("-o", "json")) == ["a", "b", "c", "w"]


def test_ten_calls_in_any_order_of_answers_print_the_same(run: Run, sidecar: FakeSidecar) -> None:
    sidecar.serves("/api/v1/peers", *(MEMBERS[turn % 4 :] + MEMBERS[: turn % 4] for turn in range(10)))
    assert len({run("peers", "-o", "wide", "--api", sidecar.api).out for _ in range(10)}) == 1


def test_table_shows_unknown_as_a_dash_and_links_by_direction(peers: Run) -> None:
    lines = [line.split() for line in peers().out.splitlines()]
    assert lines[0] == ["NAME", "ROLE", "STATE", "STATUS", "LINK", "RTT", "SEEN", "PEER_ID"]
    assert [line[:6] for line in lines[1:]] == [
        ["a", "chorus", "alive", "online", "outbound", "0.04ms"],
        ["b", "chorus", "dead", "online", "no", "-"],
        ["c", "chorus", "alive", "online", "inbound", "30.0ms"],
        ["w", "whoosh", "suspect", "online", "self", "2.0ms"],
    ]
    assert lines[2][6:] == ["-", "12D3KooWb"]


def test_json_holds_everything_wide_shows(peers: Run) -> None:
    wide = peers("-o", "wide").out.splitlines()
    assert wide[0].split()[-1] == "ADDRS"
    assert NOW in wide[1]
    for row in json.loads(peers("-o", "json").out):
        assert set(WIDE) <= row.keys()


def test_jsonl_has_one_document_a_line(peers: Run) -> None:
    outcome = peers("-o", "jsonl")
    assert [json.loads(line)["name"] for line in outcome.out.splitlines()] == ["a", "b", "c", "w"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--state", "alive"], ["a", "c"]),
        (["--state", "alive", "--state", "dead"], ["a", "b", "c"]),
        (["--role", "whoosh"], ["w"]),
        (["--capability", "go"], ["a", "b", "c"]),
        (["--capability", "go", "--capability", "review"], ["a", "b"]),
        (["--topic", "hmmm.x"], ["c"]),
        (["--topic", "hmmm.x", "--topic", "councils.forming"], ["a", "b", "c"]),
        (["--role", "chorus", "--state", "dead"], ["b"]),
        (["--role", "nobody"], []),
    ],
)
def test_filters_of_one_kind_add_and_kinds_narrow(peers: Run, arguments: list[str], expected: list[str]) -> None:
    assert names(peers("-o", "json", *arguments)) == expected


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("rtt_ms", ["a", "w", "c", "b"]),
        ("tasks_completed", ["b", "c", "a", "w"]),
        ("state", ["a", "c", "b", "w"]),
        ("last_seen", ["a", "c", "w", "b"]),
        ("-rtt_ms", ["c", "w", "a", "b"]),
        ("-tasks_completed", ["c", "b", "a", "w"]),
        ("-last_seen", ["a", "c", "w", "b"]),
        ("connected", ["c", "b", "a", "w"]),
        ("-mesh", ["c", "a", "b", "w"]),
        ("RTT", ["a", "w", "c", "b"]),
        ("-seen", ["a", "c", "w", "b"]),
    ],
)
def test_sort_takes_numbers_as_numbers_and_unknown_last_in_both_directions(
    peers: Run, column: str, expected: list[str]
) -> None:
    assert names(peers("-o", "json", "--sort", column)) == expected


@pytest.mark.parametrize("column", WIDE)
def test_every_column_of_wide_sorts_and_descends(peers: Run, column: str) -> None:
    for given in (column, f"-{column}"):
        outcome = peers("-o", "json", "--sort", given)
        assert sorted(names(outcome)) == ["a", "b", "c", "w"]


@pytest.mark.parametrize("column", ["height", "-height", "", "-", "--rtt_ms"])
def test_sort_by_an_unknown_column_lists_the_known_ones(peers: Run, column: str) -> None:
    outcome = peers("--sort", column)
    assert outcome.code == 64
    assert repr(column) in outcome.err
    for known in WIDE:
        assert known in outcome.err


@pytest.mark.parametrize(
    ("rtt", "text"), [(0.0, "<0.01ms"), (0.004, "<0.01ms"), (0.04, "0.04ms"), (1.26, "1.3ms"), (30, "30.0ms")]
)
def test_a_measured_round_trip_is_never_shown_as_0(run: Run, sidecar: FakeSidecar, rtt: float, text: str) -> None:
    sidecar.serves("/api/v1/peers", [member("a", rtt_ms=rtt)])
    assert run("peers", "--api", sidecar.api).out.splitlines()[1].split()[5] == text


def test_what_is_not_known_is_a_dash_in_every_column(run: Run, sidecar: FakeSidecar) -> None:
    unknown: dict[str, object] = {
        **dict.fromkeys(WIDE),
        "capabilities": [],
        "mesh": [],
        "addrs": [],
        "peer_id": "12D3KooWx",
    }
    sidecar.serves("/api/v1/peers", [unknown])
    cells = run("peers", "-o", "wide", "--api", sidecar.api).out.splitlines()[1].split()
    assert cells == ["12D3KooWx" if column == "peer_id" else "-" for column in WIDE]


def test_a_name_that_two_live_members_have_is_marked_and_explained(run: Run, sidecar: FakeSidecar) -> None:
    both = [member("a", same_name=True), member("a", peer_id="12D3KooWother", same_name=True), member("b")]
    sidecar.serves("/api/v1/peers", both)
    for form in ("table", "wide"):
        outcome = run("peers", "-o", form, "--api", sidecar.api)
        assert [line.split()[0] for line in outcome.out.splitlines()] == ["NAME", "a*", "a*", "b"]
        assert outcome.err == f"{SAME_NAME}\n"
    assert names(run("peers", "-o", "json", "--api", sidecar.api)) == ["a", "a", "b"]
    assert run("peers", "--role", "nobody", "--api", sidecar.api).err == "no match among the 3 members known here\n"


def test_no_match_says_how_many_are_known(peers: Run) -> None:
    outcome = peers("--role", "nobody")
    assert (outcome.code, outcome.err) == (0, "no match among the 4 members known here\n")
    assert outcome.out.startswith("NAME")


def test_hostile_names_cannot_drive_the_terminal(run: Run, sidecar: FakeSidecar) -> None:
    sidecar.serves("/api/v1/peers", [member("\x1b]0;owned\x07", model="\ud800\u202e")])
    for form in ("table", "wide", "json", "jsonl"):
        outcome = run("peers", "-o", form, "--api", sidecar.api)
        assert outcome.code == 0
        assert "\x1b" not in outcome.out
        assert "\x07" not in outcome.out


def test_wait_ends_when_enough_are_alive(run: Run, sidecar: FakeSidecar) -> None:
    both = [member("a"), member("b")]
    sidecar.serves("/api/v1/peers", [member("a")], [member("a"), member("b", state="dead")], both)
    outcome = run("peers", "--wait", "2", "--timeout", "30", "-o", "json", "--api", sidecar.api)
    assert (outcome.code, names(outcome), len(sidecar.requests)) == (0, ["a", "b"], 3)


def test_wait_counts_only_what_the_filters_leave(run: Run, sidecar: FakeSidecar) -> None:
    sidecar.serves("/api/v1/peers", [member("a"), member("w", "whoosh")])
    assert run("peers", "--wait", "2", "--timeout", "0", "--api", sidecar.api).code == 0
    assert run("peers", "--wait", "2", "--timeout", "0", "--role", "whoosh", "--api", sidecar.api).code == 1


def test_wait_that_runs_out_prints_who_is_there_and_exits_1(run: Run, sidecar: FakeSidecar) -> None:
    sidecar.serves("/api/v1/peers", [member("a")])
    outcome = run("peers", "--wait", "2", "--timeout", "0", "-o", "json", "--api", sidecar.api)
    assert (outcome.code, names(outcome)) == (1, ["a"])
    assert outcome.err == "error: 1 alive after 0 s, not 2\n"


def test_wait_waits_for_a_sidecar_too(run: Run, sidecar: FakeSidecar, monkeypatch: pytest.MonkeyPatch) -> None:
    appeared: list[float] = []

    def appear(seconds: float) -> None:
        sidecar.serves("/api/v1/peers", [member("a")])
        monkeypatch.setenv("P2PNODE_API", sidecar.api)
        appeared.append(seconds)

    missing = iter([True])
    sidecar.on("GET", "/api/v1/peers", lambda _: document_answer("not a list" if next(missing, False) else []))
    monkeypatch.setattr("time.sleep", appear)
    outcome = run("peers", "--wait", "1", "--api", sidecar.api)
    assert (outcome.code, len(appeared)) == (0, 1)


def test_wait_without_any_sidecar_exits_3(run: Run) -> None:
    assert run("peers", "--wait", "1", "--timeout", "0").code == 3


@pytest.mark.parametrize(
    "arguments",
    [
        ["--timeout", "1"],
        ["--wait", "0"],
        ["--wait", "x"],
        ["--state", "fine"],
        ["-o", "xml"],
        ["extra"],
        ["--watch", "0"],
        ["--watch", "soon"],
        ["--watch", "--wait", "1"],
    ],
)
def test_wrong_usage_exits_64(peers: Run, arguments: list[str]) -> None:
    outcome = peers(*arguments)
    assert outcome.code == 64
    assert outcome.err.startswith("error: ")
    assert outcome.err.endswith("see `p2pnode peers --help`\n")


@pytest.mark.parametrize("document", [{"peers": []}, [1], "x", None])
def test_an_answer_of_another_shape_is_no_sidecars(run: Run, sidecar: FakeSidecar, document: object) -> None:
    sidecar.serves("/api/v1/peers", document)
    assert run("peers", "--api", sidecar.api).code == 3
