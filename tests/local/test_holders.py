"""Who holds a lock or a port, seen from the outside and without disturbing it."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from p2pnode.local.holders import command_of, is_taken, listen_error, listener_on, lock_holder, state_of


@contextmanager
def listening() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_free_port_can_be_listened_on_and_stays_free() -> None:
    with listening() as port:
        pass
    assert listen_error("127.0.0.1", port) is None
    assert listen_error("127.0.0.1", port) is None
    assert listener_on(port) is None
    assert listen_error("127.0.0.1", 0) is None


def test_a_taken_port_is_told_with_its_process() -> None:
    with listening() as port:
        for host in ("127.0.0.1", "0.0.0.0"):
            error = listen_error(host, port)
            assert error is not None, host
            assert is_taken(error)
        assert listener_on(port) == os.getpid()


def test_an_address_of_another_machine_is_not_a_taken_one() -> None:
    error = listen_error("192.0.2.1", 9000)
    assert error is not None
    assert not is_taken(error)


def test_the_holder_of_a_lock_is_found_and_the_lock_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    assert lock_holder(file) is None
    with file.open("w") as held:
        assert lock_holder(file) is None
        fcntl.flock(held, fcntl.LOCK_EX)
        assert lock_holder(file) == os.getpid()
        assert lock_holder(file) == os.getpid()
    assert lock_holder(file) is None


def test_a_command_line_is_told_where_there_is_one() -> None:
    assert "python" in command_of(os.getpid())
    assert command_of(2**22 + 1) == ""


def test_a_stopped_process_is_told_from_a_running_one() -> None:
    assert state_of(os.getpid()) == "R (running)"
    assert state_of(2**22 + 1) == ""
    with subprocess.Popen(["sleep", "60"]) as process:
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        assert state_of(process.pid) == "T (stopped)"
        process.kill()
