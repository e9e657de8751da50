"""`peers --watch`: what is drawn, what is printed, what stays of the terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from p2pnode.cli.peers import SAME_NAME
from p2pnode.cli.watch import changes, summary
from tests.cli.documents import member
from tests.cli.running import Run, command
from tests.local.fake import Answer, FakeSidecar, Request, document_answer, problem

MANY = [member(f"n{number:02}") for number in range(40)]
CURSOR_AWAY, CURSOR_BACK = "\x1b[?25l", "\x1b[?25h"


class Terminal:
    """A command on a terminal of a given size."""

    def __init__(self, process: subprocess.Popen[bytes], ours: int) -> None:
        self.process = process
        self._ours = ours
        self.text = ""

    def read_until(self, found: Callable[[str], bool]) -> None:
        while not found(self.text):
            try:
                part = os.read(self._ours, 65536)
            except OSError:  # Linux tells the end of a terminal by EIO
                part = b""
            if not part:
                raise AssertionError(f"it ended: {self.text!r}")
            self.text += part.decode(errors="replace").replace("\r\n", "\n")

    def read_all(self) -> None:
        try:
            while part := os.read(self._ours, 65536):
                self.text += part.decode(errors="replace").replace("\r\n", "\n")
        except OSError:
            pass

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def frames(self) -> list[list[str]]:
        """What was drawn, each time from the top, without control sequences."""
        return [re.sub(r"\x1b\[[0-9?;]*[a-zA-Z]", "", frame).splitlines() for frame in self.text.split("\x1b[H")[1:]]


@contextmanager
def terminal(*arguments: str, columns: int = 80, lines: int = 10) -> Iterator[Terminal]:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "NO_COLOR": "1"}
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    with subprocess.Popen(command(*arguments), stdout=theirs, stderr=subprocess.PIPE, env=environment) as process:
        os.close(theirs)
        try:
            yield Terminal(process, ours)
        finally:
            process.kill()
            os.close(ours)


def times(number: int) -> Callable[[str], bool]:
    """True once so many frames are whole."""
    return lambda text: text.count("\x1b[J") >= number


def watching(*arguments: str, api: str) -> tuple[str, ...]:
    return ("peers", "--watch", "0.1", "--api", api, *arguments)


def test_on_a_terminal_it_redraws_from_the_top_and_never_clears_the_whole(sidecar: FakeSidecar) -> None:
    sidecar.serves("/api/v1/peers", [member("a"), member("b")], [member("a"), member("b", state="dead")])
    with terminal(*watching(api=sidecar.api)) as shown:
        shown.read_until(times(3))
        assert "\x1b[2J" not in shown.text
        first, second, *_ = shown.frames()
        assert first[0].endswith("  2 members: 2 alive")
        assert second[0].endswith("  2 members: 1 alive, 1 dead")
        assert [line.split()[:3] for line in second[2:]] == [
            ["NAME", "ROLE", "STATE"],
            ["a", "chorus", "alive"],
            ["b", "chorus", "dead"],
        ]


def test_ctrl_c_and_termination_give_the_cursor_back(sidecar: FakeSidecar) -> None:
    sidecar.serves("/api/v1/peers", [member("a")])
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        with terminal(*watching(api=sidecar.api)) as shown:
            shown.read_until(times(1))
            shown.process.send_signal(number)
            shown.read_all()
            assert shown.process.wait(30) == code
            assert shown.process.stderr is not None
            assert shown.process.stderr.read() == b""
            assert shown.text.count(CURSOR_AWAY) == shown.text.count(CURSOR_BACK) == 1
            assert shown.text.endswith(f"{CURSOR_BACK}\n")
            assert shown.text.rindex("\x1b[?7h") > shown.text.rindex("\x1b[?7l")


def test_a_frame_fits_the_terminal_and_follows_its_size(sidecar: FakeSidecar) -> None:
    sidecar.serves("/api/v1/peers", MANY)
    with terminal("peers", "--watch", "3600", "-o", "wide", "--api", sidecar.api, columns=40, lines=12) as shown:
        shown.read_until(times(1))
        shown.resize(100, 60)
        shown.read_until(times(2))
        small, large = shown.frames()
    assert len(small) == 12
    assert max(map(len, small)) <= 40
    assert small[-1] == "… and 32 more: filter, or enlarge the terminal"[:40]
    assert len(large) == 43
    assert max(map(len, large)) <= 100
    assert len(sidecar.requests) == 1


@pytest.mark.parametrize(("columns", "lines"), [(1, 1), (2, 3), (5, 2), (0, 0)])
def test_no_terminal_is_too_small(sidecar: FakeSidecar, columns: int, lines: int) -> None:
    sidecar.serves("/api/v1/peers", [member("a", same_name=True), *MANY])
    with terminal(*watching(api=sidecar.api), columns=columns, lines=lines) as shown:
        shown.read_until(times(2))
        assert len(shown.frames()[0]) <= (lines or 24)


def test_a_sidecar_that_goes_away_is_told_and_waited_for(sidecar: FakeSidecar) -> None:
    answer = document_answer([member("a")])
    sidecar.on("GET", "/api/v1/peers", answer, problem(503, "it is starting"), answer)
    with terminal(*watching(api=sidecar.api)) as shown:
        shown.read_until(times(3))
        first, second, third, *_ = shown.frames()
    assert len(first) == len(third) == 4
    assert re.fullmatch(r"it is starting; this is \d+s old", second[1])
    assert second[4].startswith("a ")


def test_names_that_two_have_are_explained_below(sidecar: FakeSidecar) -> None:
    sidecar.serves("/api/v1/peers", [member("a", same_name=True)])
    with terminal(*watching(api=sidecar.api)) as shown:
        shown.read_until(times(1))
        assert shown.frames()[0][3:] == [shown.frames()[0][3], "", SAME_NAME]
        assert shown.frames()[0][3].startswith("a*")


class Interrupted:
    """Lets a command sleep so many times, then presses Ctrl-C."""

    def __init__(self, times: int) -> None:
        self.left = times
        self.slept: list[float] = []

    def __call__(self, seconds: float) -> None:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        self.slept.append(seconds)


@pytest.fixture
def watch(run: Run, sidecar: FakeSidecar, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run `peers --watch` in a pipe, over these answers."""

    def watch(*arguments: str, answers: list[Any]) -> Any:
        sleep = Interrupted(len(answers) - 1)
        monkeypatch.setattr("time.sleep", sleep)
        given = [each if isinstance(each, Answer) else document_answer(each) for each in answers]
        sidecar.on("GET", "/api/v1/peers", *given)
        outcome = run("peers", *arguments, "--api", sidecar.api)
        assert "\x1b" not in outcome.out
        return outcome

    return watch


def test_in_a_pipe_each_time_prints_one_snapshot(watch: Callable[..., Any]) -> None:
    outcome = watch("--watch", answers=[[member("a")], [member("a", state="suspect")]])
    first, second = outcome.out.split("\n\n")
    assert outcome.code == 130
    assert [line.split()[0] for line in first.splitlines()[1:]] == ["NAME", "a"]
    assert first.splitlines()[0].endswith("1 members: 1 alive")
    assert second.splitlines()[0].endswith("1 members: 1 suspect")


def test_json_prints_whole_lists_and_the_filters_stay(watch: Callable[..., Any]) -> None:
    outcome = watch(
        "--watch", "5", "-o", "json", "--state", "alive", answers=[[member("a"), member("b", state="dead")]]
    )
    assert [each["name"] for each in json.loads(outcome.out)] == ["a"]


def test_it_waits_as_long_as_was_said_and_two_seconds_otherwise(
    watch: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    slept = []
    for arguments in (["--watch"], ["--watch", "7.5"], ["--watch", "-o", "json"], ["--watch=0.5"]):
        watch(*arguments, answers=[[], []])
        assert isinstance(time.sleep, Interrupted)
        slept.append(time.sleep.slept)
    assert slept == [[2.0], [7.5], [2.0], [0.5]]


def test_jsonl_has_one_line_for_each_change(watch: Callable[..., Any]) -> None:
    a, b = member("a"), member("b")
    outcome = watch(
        "--watch",
        "-o",
        "jsonl",
        answers=[[a], [{**a, "rtt_ms": 9.0, "last_seen": "later", "score": 1}, b], [{**a, "status": "busy"}, b], [b]],
    )
    lines = [json.loads(line) for line in outcome.out.splitlines()]
    assert [(line["name"], line["change"], line["changed"]) for line in lines] == [
        ("a", "known", []),
        ("b", "appeared", []),
        ("a", "changed", ["status"]),
        ("a", "gone", []),
    ]
    assert lines[2]["status"] == "busy"
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", line["at"]) for line in lines)


def test_who_leaves_the_filter_is_gone_as_it_is_now(watch: Callable[..., Any]) -> None:
    answers = [[member("a")], [member("a", state="dead")]]
    outcome = watch("--watch", "-o", "jsonl", "--state", "alive", answers=answers)
    last = json.loads(outcome.out.splitlines()[-1])
    assert (last["change"], last["changed"], last["state"]) == ("gone", ["state"], "dead")


def test_in_a_pipe_a_missing_sidecar_is_told_once_and_no_change(watch: Callable[..., Any]) -> None:
    gone = problem(503, "it is starting")
    outcome = watch("--watch", "-o", "jsonl", answers=[[member("a")], gone, gone, [member("a")]])
    assert [json.loads(line)["change"] for line in outcome.out.splitlines()] == ["known"]
    assert outcome.err == "it is starting; asking on\nthe sidecar answers again\n"


def test_the_first_question_must_be_answered(run: Run, sidecar: FakeSidecar) -> None:
    assert run("peers", "--watch", "--api", "unix:/nonexistent/api.sock").code == 3
    sidecar.serves("/api/v1/peers", "nonsense")
    assert run("peers", "--watch", "--api", sidecar.api).code == 3


def test_the_summary_counts_what_is_shown_by_state() -> None:
    states: list[Mapping[str, Any]] = [{"state": state} for state in ("left", "alive", "dead", "alive")]
    assert summary(states, states, 0.0).endswith("  4 members: 2 alive, 1 dead, 1 left")
    assert summary(states[:1], states, 0.0).endswith("  1 of 4 members: 1 left")
    assert summary([], states, 0.0).endswith("  0 of 4 members: none alive")


def test_nothing_new_is_no_change() -> None:
    now = {"p": {"peer_id": "p", "rtt_ms": 1.0}}
    assert list(changes(now, {"p": {"peer_id": "p", "rtt_ms": 2.0}}, now)) == []


def test_members_are_asked_for_anew_each_time(sidecar: FakeSidecar) -> None:
    asked: list[Request] = []

    def answer(request: Request) -> Answer:
        asked.append(request)
        return document_answer([member(f"n{len(asked)}")])

    sidecar.on("GET", "/api/v1/peers", answer)
    with terminal(*watching(api=sidecar.api)) as shown:
        shown.read_until(lambda text: "n3 " in text)
        assert [frame[3].split()[0] for frame in shown.frames()[:3]] == ["n1", "n2", "n3"]
