"""A real Docker Swarm of one node, in namespaces of its own: gone when the block ends, or when this process dies.

The daemon has its own network, process and mount namespace. It neither sees nor is seen by another Docker of this
machine, and what it leaves behind goes with the namespaces.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from tests.programs import program
from tests.swarm.image import REPOSITORY, configuration, write_root

T = TypeVar("T")

STACK: Final = REPOSITORY / "docker" / "stack.yaml"
PRIVATE: Final = REPOSITORY / "docker" / "stack.private.yaml"
IMAGE: Final = "p2pnode:latest"
DEADLINE_SECONDS: Final = 60.0

_CGROUPS: Final = Path("/sys/fs/cgroup")
_DAEMON: Final = """
set -e
ip link set lo up
mkdir -p /etc/docker /run/docker
mount -t tmpfs none /etc/docker
mount -t tmpfs none /run/docker
cd "$1"
mkdir lower upper work merged
driver=vfs
if mount -t overlay none -o lowerdir=lower,upperdir=upper,workdir=work merged; then
    umount merged
    driver=overlay2
fi
exec docker-init -- dockerd --data-root "$1/data" --exec-root "$1/exec" --host "unix://$1/docker.sock" \\
    --pidfile "$1/pid" --storage-driver "$driver" --cgroup-parent "/$2" \\
    --bridge=none --iptables=false --ip6tables=false
"""
"""$1: its directory; $2: the name of its control groups. vfs copies the whole image for each container."""

_DISCOVERY: Final = """
import json
from p2pnode.cli.sidecar import connect

print(json.dumps(connect(None, None).get_json("/api/v1/discovery")))
"""


def wait_until(
    what: str, found: Callable[[], T | None], seconds: float = DEADLINE_SECONDS, pause_seconds: float = 0.2
) -> T:
    """The first true answer of `found`, asked again and again until the deadline."""
    deadline = time.monotonic() + seconds
    while True:
        answer = found()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(pause_seconds)


@dataclass(frozen=True)
class Swarm:
    """A running daemon that manages a Swarm of itself.

    Args:
        directory: where it keeps everything.
        process: `unshare`, whose only child is the daemon's init.
    """

    directory: Path
    process: subprocess.Popen[bytes]

    @property
    def socket(self) -> Path:
        return self.directory / "docker.sock"

    @property
    def init(self) -> int:
        """The pid of the first process in the daemon's namespaces."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0])

    def docker(self, *words: str, environ: Mapping[str, str] | None = None, check: bool = True) -> str:
        """What a docker command printed; with `check=False`, whatever it ended with."""
        done = subprocess.run(
            [_found("docker"), *words],
            env={**_environment(), "DOCKER_HOST": f"unix://{self.socket}", **(environ or {})},
            capture_output=True,
            text=True,
        )
        assert not check or done.returncode == 0, f"docker {' '.join(words)}: {done.stderr}"
        return done.stdout

    def get(self, path: str) -> Any:
        """A document of the Engine API."""
        connection = _UnixConnection(self.socket)
        try:
            connection.request("GET", path, headers={"Host": "docker"})
            response = connection.getresponse()
            body = response.read()
            assert response.status == 200, f"GET {path}: {response.status} {body.decode()}"
            return json.loads(body)
        finally:
            connection.close()

    def deploy(self, stack: str, *files: Path, environ: Mapping[str, str]) -> None:
        named = [word for file in files for word in ("--compose-file", str(file))]
        self.docker("stack", "deploy", *named, "--resolve-image", "never", stack, environ=environ)

    def remove(self, stack: str) -> None:
        """Remove a stack and wait until its containers, networks and volumes are gone."""
        label = f"label=com.docker.stack.namespace={stack}"
        self.docker("stack", "rm", stack)
        wait_until(f"the containers of {stack} are gone", lambda: not self.docker("ps", "-aq", "--filter", label))
        wait_until(f"the networks of {stack} are gone", lambda: not self.docker("network", "ls", "-q", "-f", label))
        self.docker("volume", "rm", *self.docker("volume", "ls", "-q").split())

    def tasks(self, service: str) -> list[dict[str, Any]]:
        """The tasks of a service that run, by slot."""
        filters = json.dumps({"service": [service], "desired-state": ["running"]}).replace(" ", "")
        found = [each for each in self.get(f"/tasks?filters={filters}") if each["Status"]["State"] == "running"]
        return sorted(found, key=lambda task: task.get("Slot", 0))

    def wait_for_tasks(self, service: str, count: int, seconds: float = 120.0) -> list[dict[str, Any]]:
        """The running tasks, once there are `count` of them."""

        def found() -> list[dict[str, Any]] | None:
            tasks = self.tasks(service)
            return tasks if len(tasks) == count else None

        try:
            return wait_until(f"{service} has {count} running tasks", found, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.docker('service', 'ps', '--no-trunc', service)}") from None

    def container(self, service: str) -> str:
        """The container of a service's first running task."""
        return str(self.tasks(service)[0]["Status"]["ContainerStatus"]["ContainerID"])

    @contextmanager
    def balanced(self, service: str, port: int) -> Iterator[str]:
        """The virtual address of a service in its own network, made to work where the kernel has no IPVS."""
        endpoint = self.get(f"/services/{service}")["Endpoint"]
        (virtual,) = endpoint["VirtualIPs"]
        address = str(virtual["Addr"]).partition("/")[0]
        if Path(f"/proc/{self.init}/net/ip_vs").exists():
            yield address
            return
        attachments = [each["NetworksAttachments"] for each in self.tasks(service)]
        tasks = [each[0]["Addresses"][0].partition("/")[0] for each in attachments]
        sandbox = f"{self.directory}/exec/netns/lb_{virtual['NetworkID'][:9]}"
        into = [_found("nsenter"), "--target", str(self.init), "--mount", "--pid", "nsenter", f"--net={sandbox}"]
        balancer = subprocess.Popen(
            [*into, sys.executable, "-m", "tests.swarm.balancer", address, str(port), *tasks],
            cwd=REPOSITORY,
            env=_environment(),
            stdout=subprocess.PIPE,
        )
        assert balancer.stdout is not None
        try:
            assert balancer.stdout.readline() == b"ready\n", "the balancer did not start"
            yield address
        finally:
            balancer.terminate()
            balancer.wait()
            balancer.stdout.close()

    def ask(self, container: str, *words: str) -> Any:
        """What a p2pnode command with `-o json` says in a container; None while no sidecar answers there."""
        done = self.run_in(container, "p2pnode", *words, "-o", "json")
        return json.loads(done.stdout) if done.stdout.startswith(("{", "[")) else None

    def discovery(self, container: str) -> Any:
        """Where the node in a container looks for peers, and what it found there."""
        done = self.run_in(container, "python", "-c", _DISCOVERY)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def run_in(self, container: str, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in a container."""
        return subprocess.run(
            [_found("docker"), "--host", f"unix://{self.socket}", "exec", container, *command],
            env=_environment(),
            capture_output=True,
            text=True,
        )

    def wait_for_health(self, container: str) -> None:
        """Wait until a container is healthy."""
        form = "{{.State.Health.Status}}"
        wait_until(
            f"{container} is healthy", lambda: self.docker("inspect", "-f", form, container).strip() == "healthy"
        )

    def build_image(self) -> None:
        """Make the image `p2pnode:latest`."""
        files, context = self.directory / "root.tar", self.directory / "context"
        write_root(files)
        self.docker("import", str(files), "p2pnode-files:latest")
        files.unlink()
        context.mkdir()
        (context / "Dockerfile").write_text(f"FROM p2pnode-files:latest\n{configuration()}\n", "utf-8")
        self.docker("build", "--quiet", "--tag", IMAGE, str(context), environ={"DOCKER_BUILDKIT": "0"})


@contextmanager
def open_swarm() -> Iterator[Swarm]:
    """Start a daemon and make it a Swarm; both and all their data are gone when the block ends. Needs root.

    Raises:
        RuntimeError: the daemon did not start; holds the end of its log.
    """
    # A Unix socket's path is short.
    directory = Path(tempfile.mkdtemp(prefix="swarm-", dir="/tmp"))
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(_found("setpriv"), "--pdeathsig", "KILL"),
                *(_found("unshare"), "--net", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"),
                *("sh", "-c", _DAEMON, "sh", str(directory), directory.name),
            ],
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    swarm = Swarm(directory, process)
    try:
        try:
            wait_until("the daemon answers", lambda: _answers(swarm))
            swarm.docker("swarm", "init", "--advertise-addr", "127.0.0.1", "--listen-addr", "127.0.0.1:2377")
        except AssertionError as error:
            raise RuntimeError(f"{error}\n{(directory / 'log').read_text()[-4000:]}") from error
        yield swarm
    finally:
        _end(swarm)


def _answers(swarm: Swarm) -> bool:
    assert swarm.process.poll() is None, f"the daemon ended with {swarm.process.returncode}"
    try:
        return bool(swarm.get("/version"))
    except OSError:
        return False


def _end(swarm: Swarm) -> None:
    """Leave the Swarm, let the daemon stop, then end whatever is left in its namespaces."""
    process = swarm.process
    if process.poll() is None:
        with suppress(subprocess.TimeoutExpired, OSError, IndexError):
            subprocess.run(
                [_found("docker"), "--host", f"unix://{swarm.socket}", "swarm", "leave", "--force"],
                capture_output=True,
                timeout=30,
            )
            os.kill(swarm.init, signal.SIGTERM)
            process.wait(30)
    process.kill()  # and with it the namespace's init, and with that all processes in it
    process.wait()
    shutil.rmtree(swarm.directory, ignore_errors=True)
    for group in _CGROUPS.glob(f"*/{swarm.directory.name}"):
        for path in sorted(group.rglob("*/"), reverse=True):
            with suppress(OSError):
                path.rmdir()
        with suppress(OSError):
            group.rmdir()


def _found(name: str) -> str:
    path = program(name)
    assert path is not None, f"{name} is missing: run `python -m tests.swarm.install`"
    return path


def _environment() -> dict[str, str]:
    """Without anything that configures p2pnode or docker, and with administrators' directories in PATH."""
    prefixes: Sequence[str] = ("P2PNODE_", "CHORUS_", "WHOOSH_", "DOCKER_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(tuple(prefixes))}
    return {**kept, "PATH": f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"}


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("docker", timeout=30)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
