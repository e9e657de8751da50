"""The files of docker/: what can be said of them without a daemon."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from fnmatch import fnmatch
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Final

import pytest

from p2pnode.config.layers import ALIASES, FALLBACKS
from p2pnode.config.settings import keys
from p2pnode.discovery.docker_tasks import Rules, find_places, parse_tasks
from tests.swarm.harness import PRIVATE, STACK
from tests.swarm.image import DOCKERFILE, REPOSITORY, USER_ID, instructions

COMPOSE: Final = REPOSITORY / "docker" / "compose.yaml"
BRIDGE: Final = REPOSITORY / "docker" / "stack.bridge.yaml"
GUIDE: Final = REPOSITORY / "docs" / "docker-swarm.md"
ANSWERS: Final = REPOSITORY / "tests" / "discovery" / "docker_answers"
VARIABLE: Final = re.compile(r"\bP2PNODE_[A-Z]+_[A-Z_]+\b")


def sent_to_the_daemon() -> list[str]:
    """The names that .dockerignore lets through."""
    lines = (REPOSITORY / ".dockerignore").read_text("utf-8").splitlines()
    return [line.removeprefix("!") for line in lines if line.startswith("!")]


def test_what_the_dockerfile_copies_exists_and_is_sent_to_the_daemon() -> None:
    sources = []
    for word, rest in instructions():
        words = rest.split()
        if word == "COPY" and not words[0].startswith("--from="):
            sources += words[:-1]
    assert sources
    for source in sources:
        assert (REPOSITORY / source).exists(), source
        assert any(fnmatch(source, name) for name in sent_to_the_daemon()), source


def test_the_dockerfile_copies_from_stages_that_it_has() -> None:
    stages = {rest.split(" AS ")[1] for word, rest in instructions() if word == "FROM" and " AS " in rest}
    named = {name for word, rest in instructions() if word == "COPY" for name in re.findall(r"--from=(\S+)", rest)}
    assert named
    assert named <= stages


def test_the_image_runs_as_the_user_that_owns_its_data() -> None:
    said = dict(instructions())
    assert said["USER"] == f"{USER_ID}:{USER_ID}"
    assert f"-o {USER_ID}" in said["RUN"]
    assert said["VOLUME"] in said["RUN"]
    assert f"P2PNODE_NODE_DATA_DIR={said['VOLUME']}" in said["ENV"]


def test_every_health_check_is_the_same() -> None:
    said = dict(instructions())["HEALTHCHECK"]
    options = dict(re.findall(r"--([a-z-]+)=(\S+)", said))
    command = json.loads(said[said.index("[") :])
    written = "\n".join(
        [
            f"    test: [CMD, {', '.join(command)}]",
            f"    interval: {options['interval']}",
            f"    timeout: {options['timeout']}",
            f"    start_period: {options['start-period']}",
            f"    retries: {options['retries']}\n",
        ]
    )
    for file in (STACK, BRIDGE, COMPOSE):
        assert written in file.read_text("utf-8"), file.name


@pytest.mark.parametrize("file", [STACK, PRIVATE, BRIDGE, COMPOSE, DOCKERFILE, GUIDE], ids=lambda file: file.name)
def test_every_variable_of_p2pnode_is_a_setting(file: Path) -> None:
    known = {key.variable for key in keys()} | {"P2PNODE_IMAGE"}
    used = set(VARIABLE.findall(file.read_text("utf-8")))
    assert used <= known, used - known


def test_the_older_names_in_the_stack_are_known() -> None:
    # Those before a colon are set in a container; those in ${…} are for who deploys.
    texts = STACK.read_text("utf-8") + BRIDGE.read_text("utf-8") + COMPOSE.read_text("utf-8")
    names = r"^ +((?:WHOOSH|CHORUS|DOCKER|NATS)_[A-Z_]+|P2PNODE_ROLLBACK):"
    set_in_containers = set(re.findall(names, texts, re.MULTILINE))
    assert {"NATS_URL", "NATS_USER", "NATS_PASSWORD", "NATS_TOKEN", "P2PNODE_ROLLBACK"} <= set_in_containers
    assert set_in_containers <= {*ALIASES, *(name for name, *_ in FALLBACKS)}


def test_the_guide_names_every_variable_of_the_stack() -> None:
    guide = GUIDE.read_text("utf-8")
    texts = "".join(file.read_text("utf-8") for file in (STACK, PRIVATE, BRIDGE))
    for name in set(re.findall(r"\$\{([A-Z0-9_]+)", texts)):
        assert f"`{name}`" in guide, name


def test_bridges_take_their_import_key_from_a_secret_that_only_they_can_read() -> None:
    text = BRIDGE.read_text("utf-8")
    (path,) = re.findall(r"P2PNODE_BRIDGE_IMPORT_KEY_FILE: (\S+)", text)
    (target,) = re.findall(r"target: (import\S+)", text)
    assert path == f"/run/secrets/{target}"
    assert f'uid: "{USER_ID}"\n        mode: 0400' in text
    (secret,) = re.findall(r"\$\{IMPORT_KEY_SECRET:-(\w+)\}", text)
    for page in ("bridge.md", "docker-swarm.md"):
        assert f"docker secret create {secret} import.key" in (REPOSITORY / "docs" / page).read_text("utf-8")


def test_a_bridge_in_swarm_is_set_up_as_the_other_nodes_are() -> None:
    def settings(file: Path) -> dict[str, str]:
        return dict(re.findall(r"^ +([A-Z][A-Z0-9_]+): (.+)$", file.read_text("utf-8"), re.MULTILINE))

    stack, bridge = settings(STACK), settings(BRIDGE)
    same = {name for name in bridge if name in stack} - {"P2PNODE_NETWORK_BOOTSTRAP", "NATS_URL"}
    assert {"P2PNODE_NODE_NAME", "P2PNODE_NETWORK_ANNOUNCE_CIDR", "CHORUS_SERVICE_NAME", "NATS_PASSWORD"} <= same
    assert {name: bridge[name] for name in same} == {name: stack[name] for name in same}


def test_a_real_swarms_tasks_all_have_places() -> None:
    tasks = list(parse_tasks(json.loads((ANSWERS / "real_tasks.json").read_text("utf-8"))))
    rules = Rules("chorus-mesh", (ip_network("10.90.0.0/24"),), 9000, 8080, "docker-unified-stack")
    places, troubles = find_places("CHORUS_chorus", tasks, rules)
    assert (len(tasks), len(places), troubles) == (8, 8, ())
    networks = json.loads((ANSWERS / "real_networks.json").read_text("utf-8"))
    (subnet,) = [each["IPAM"]["Config"][0]["Subnet"] for each in networks if each["Name"] == "chorus-mesh"]
    assert all(ip_interface(place.addr.split("/")[2]) in ip_network(subnet) for place in places)


@pytest.mark.soak
def test_compose_accepts_its_file_as_written() -> None:
    plugin = subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0
    command = ["docker", "compose"] if plugin else [str(shutil.which("docker-compose"))]
    done = subprocess.run([*command, "--file", str(COMPOSE), "config"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {"bootstrap:", "whoosh:", "chorus:"} <= {line.strip() for line in done.stdout.splitlines()}


@pytest.mark.soak
def test_docker_reads_the_stacks_files_together() -> None:
    files = [word for file in (STACK, BRIDGE, PRIVATE) for word in ("--compose-file", str(file))]
    done = subprocess.run(["docker", "stack", "config", *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {"bridge:", "import_key:", "network_key:"} <= {line.strip() for line in done.stdout.splitlines()}
