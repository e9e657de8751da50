"""Flags over environment over file over defaults, and every value knows where it came from."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from p2pnode.config import FLAGS, Loaded, load_settings, render_settings, settings_document
from p2pnode.config.settings import keys

Load = Callable[..., Loaded]

FILE = '[log]\nlevel = "warning"\n[network]\nlisten = ["/ip4/10.0.0.1/tcp/1"]'
ENV = {"P2PNODE_LOG_LEVEL": "error", "P2PNODE_NETWORK_LISTEN": "/ip4/10.0.0.2/tcp/2, /ip6/::1/tcp/3"}
FLAG = {"log_level": "debug", "listen": ("/ip4/10.0.0.4/tcp/4",)}

PEER = "12D3KooWEZXjE41uU4EL2gpkAQeDXYok6wghN7wwNVPF5bwkaNfS"
OTHER = "12D3KooWSoC9Jm8FQ8bxFFVQHgZZ7x5vyVbDHyTxFeGCGKXc1Wvo"


@pytest.mark.parametrize(
    ("toml", "env", "flags", "level", "listen", "source"),
    [
        (None, {}, {}, "info", ("/ip4/0.0.0.0/tcp/9000",), ("default", "default")),
        (FILE, {}, {}, "warning", ("/ip4/10.0.0.1/tcp/1",), ("file", "file")),
        (None, ENV, {}, "error", ("/ip4/10.0.0.2/tcp/2", "/ip6/::1/tcp/3"), ("env", "env")),
        (FILE, ENV, {}, "error", ("/ip4/10.0.0.2/tcp/2", "/ip6/::1/tcp/3"), ("env", "env")),
        (None, {}, FLAG, "debug", ("/ip4/10.0.0.4/tcp/4",), ("flag", "flag")),
        (FILE, {}, FLAG, "debug", ("/ip4/10.0.0.4/tcp/4",), ("flag", "flag")),
        (None, ENV, FLAG, "debug", ("/ip4/10.0.0.4/tcp/4",), ("flag", "flag")),
        (FILE, ENV, FLAG, "debug", ("/ip4/10.0.0.4/tcp/4",), ("flag", "flag")),
        (FILE, ENV, {"log_level": "debug"}, "debug", ("/ip4/10.0.0.2/tcp/2", "/ip6/::1/tcp/3"), ("flag", "env")),
    ],
)
def test_the_higher_layer_wins(
    load: Load,
    tmp_path: Path,
    toml: str | None,
    env: dict[str, str],
    flags: dict[str, object],
    level: str,
    listen: tuple[str, ...],
    source: tuple[str, str],
) -> None:
    names = {
        "default": ("default", "default"),
        "file": (f"file {tmp_path / 'p2pnode.toml'}",) * 2,
        "env": ("env P2PNODE_LOG_LEVEL", "env P2PNODE_NETWORK_LISTEN"),
        "flag": ("flag --log-level", "flag --listen"),
    }
    loaded = load(toml, env, **flags)
    assert (loaded.settings.log.level, loaded.settings.network.listen) == (level, listen)
    assert loaded.sources["log.level"] == names[source[0]][0]
    assert loaded.sources["network.listen"] == names[source[1]][1]


def test_flags_and_variables_that_are_empty_count_as_not_set(load: Load) -> None:
    loaded = load(
        FILE, {"P2PNODE_LOG_LEVEL": "", "CHORUS_P2P_PORT": "", "P2PNODE_CONFIG": ""}, log_level=None, listen=(), name=""
    )
    assert loaded.settings.log.level == "warning"
    assert loaded.settings.network.listen == ("/ip4/10.0.0.1/tcp/1",)


def test_every_key_can_be_set_by_its_variable(load: Load) -> None:
    given = {
        "P2PNODE_NODE_NAME": "alpha",
        "P2PNODE_NODE_ROLE": "whoosh",
        "P2PNODE_NODE_DATA_DIR": "/var/lib/p2pnode",
        "P2PNODE_LOG_LEVEL": "debug",
        "P2PNODE_LOG_FORMAT": "json",
        "P2PNODE_NETWORK_LISTEN": "/ip4/127.0.0.1/tcp/0",
        "P2PNODE_NETWORK_ANNOUNCE": "/dns4/alpha.example/tcp/9001",
        "P2PNODE_NETWORK_ANNOUNCE_CIDR": "",
        "P2PNODE_NETWORK_BOOTSTRAP": f"/dns/whoosh/tcp/9000/p2p/{PEER}",
        "P2PNODE_NETWORK_TARGET_LINKS": "3",
        "P2PNODE_NETWORK_MAX_LINKS": "12",
        "P2PNODE_NETWORK_DIAL_BACKOFF_MAX_SECONDS": "2.5",
        "P2PNODE_NETWORK_KEY": "0b" * 32,
        "P2PNODE_NETWORK_KEY_FILE": "",
        "P2PNODE_DISCOVERY_MODE": "dns",
        "P2PNODE_DISCOVERY_MDNS": "on",
        "P2PNODE_DISCOVERY_MDNS_INTERFACES": "eth0,wlan0",
        "P2PNODE_DISCOVERY_DOCKER_HOST": "tcp://proxy:2375",
        "P2PNODE_DISCOVERY_DOCKER_NETWORK": "CHORUS_net",
        "P2PNODE_DISCOVERY_SERVICES": "CHORUS_chorus,WHOOSH_whoosh",
        "P2PNODE_DISCOVERY_P2P_PORT": "9001",
        "P2PNODE_DISCOVERY_AGENT_PORT": "8081",
        "P2PNODE_DISCOVERY_REFRESH_SECONDS": "5",
        "P2PNODE_TRUST_ORCHESTRATORS": f"{PEER},{OTHER}",
        "P2PNODE_TRUST_BRIDGES": OTHER,
        "P2PNODE_GOSSIP_DEGREE": "4",
        "P2PNODE_TRANSPORT_STACK": "library",
        "P2PNODE_GOSSIP_HEARTBEAT_SECONDS": "0.5",
        "P2PNODE_GOSSIP_TOPICS": "councils.forming,hmmm.x",
        "P2PNODE_GOSSIP_PUBLISH_PER_SECOND": "7",
        "P2PNODE_GOSSIP_PUBLISH_BURST": "8",
        "P2PNODE_API_LISTEN": "unix:/run/a.sock,tcp:[::1]:8090",
        "P2PNODE_API_TOKEN_FILE": "/run/secrets/token",
        "P2PNODE_API_ALLOWED_HOSTS": "Node-7",
        "P2PNODE_MESSAGES_KEEP_COUNT": "5",
        "P2PNODE_MESSAGES_KEEP_BYTES": "1000000",
        "P2PNODE_MESSAGES_KEEP_SECONDS": "86400",
        "P2PNODE_MESSAGES_OWN_DURABILITY": "normal",
        "P2PNODE_MESSAGES_RECEIVED_DURABILITY": "full",
        "P2PNODE_AGENT_ID": "a1",
        "P2PNODE_AGENT_NAME": "Agent One",
        "P2PNODE_AGENT_CAPABILITIES": "backend, testing,",
        "P2PNODE_AGENT_MODEL": "m",
        "P2PNODE_AGENT_ENDPOINT": "http://10.0.0.7:8080",
        "P2PNODE_AGENT_CLUSTER_ID": "lab_1",
        "P2PNODE_AGENT_WEBHOOK": "http://127.0.0.1:8080/messages",
        "P2PNODE_AGENT_WEBHOOK_TOPICS": "councils.forming",
        "P2PNODE_AGENT_WEBHOOK_TIMEOUT_SECONDS": "2",
        "P2PNODE_AGENT_WEBHOOK_ATTEMPTS": "20",
        "P2PNODE_AGENT_STOP_GRACE_SECONDS": "0",
        "P2PNODE_AGENT_AUTO_CLAIM": "true",
        "P2PNODE_COUNCILS_TAKEOVER": "any",
        "P2PNODE_COUNCILS_FORMATION_SECONDS": "90",
        "P2PNODE_TRUST_BRIDGED_TOPICS": "councils.forming,councils.status",
        "P2PNODE_CARRIERS_GOSSIP": "fallback",
        "P2PNODE_CARRIERS_NATS": "always",
        "P2PNODE_CARRIERS_HTTP": "off",
        "P2PNODE_CARRIERS_CANARY_PERCENT": "12.5",
        "P2PNODE_CARRIERS_ROLLBACK": "nats",
        "P2PNODE_CARRIERS_LISTEN": "0.0.0.0:9001",
        "P2PNODE_CARRIERS_ANNOUNCE": "http://10.0.0.7:9001",
        "P2PNODE_NATS_URL": "nats://a:4222,tls://b:4222",
        "P2PNODE_NATS_USER": "u",
        "P2PNODE_NATS_PASSWORD": "p",
        "P2PNODE_NATS_TOKEN": "t",
        "P2PNODE_NATS_CREDS_FILE": "/run/secrets/nats.creds",
        "P2PNODE_NATS_NKEY": "/run/secrets/nats.nk",
        "P2PNODE_NATS_TLS_CA_FILE": "/run/secrets/ca.pem",
        "P2PNODE_NATS_TLS_CERT_FILE": "/run/secrets/cert.pem",
        "P2PNODE_NATS_TLS_KEY_FILE": "/run/secrets/key.pem",
        "P2PNODE_NATS_JETSTREAM": "on",
        "P2PNODE_NATS_STREAM": "COUNCILS",
        "P2PNODE_NATS_SUBJECTS": "alerts=ops.alerts",
        "P2PNODE_BRIDGE_IMPORT_KEY_FILE": "/run/secrets/import.key",
        "P2PNODE_BRIDGE_DURABLE": "bridges",
        "P2PNODE_LEGACY_ENDPOINTS": "http://10.0.0.9:8080",
        "P2PNODE_LEGACY_PATH": "/opportunities",
        "P2PNODE_LEGACY_HEALTH_PORT": "8082",
    }
    assert set(given) == {key.variable for key in keys()}
    loaded = load(None, given)
    # Key and file of a key contradict each other, as do addresses and networks to announce, so they take turns.
    in_turn = ("network.key_file", "network.announce_cidr")
    assert loaded.sources == {
        key.dotted: "default" if key.dotted in in_turn else f"env {key.variable}" for key in keys()
    }
    by_network = load(None, {**given, "P2PNODE_NETWORK_ANNOUNCE": "", "P2PNODE_NETWORK_ANNOUNCE_CIDR": "10.0.0.0/8"})
    assert by_network.settings.network.announce_cidr == ("10.0.0.0/8",)
    by_file = load(None, {**given, "P2PNODE_NETWORK_KEY": "", "P2PNODE_NETWORK_KEY_FILE": "/run/secrets/swarm.key"})
    assert by_file.settings.network.key_file == Path("/run/secrets/swarm.key")
    assert by_file.sources["network.key_file"] == "env P2PNODE_NETWORK_KEY_FILE"
    settings = loaded.settings
    assert settings.node.data_dir == Path("/var/lib/p2pnode")
    assert settings.network.dial_backoff_max_seconds == 2.5
    assert settings.network.key == "0b" * 32
    assert settings.trust.orchestrators == (PEER, OTHER)
    assert settings.trust.bridges == (OTHER,)
    assert settings.api.listen == ("unix:/run/a.sock", "tcp:[::1]:8090")
    assert settings.api.token_file == Path("/run/secrets/token")
    assert settings.api.allowed_hosts == ("node-7",)
    assert settings.messages.keep_seconds == 86400
    assert (settings.messages.own_durability, settings.messages.received_durability) == ("normal", "full")
    assert settings.agent.capabilities == ("backend", "testing")
    assert settings.agent.stop_grace_seconds == 0
    assert settings.agent.auto_claim is True
    assert (settings.councils.takeover, settings.councils.formation_seconds) == ("any", 90)
    assert settings.nats.url == ("nats://a:4222", "tls://b:4222")
    assert (settings.carriers.canary_percent, settings.carriers.rollback) == (12.5, "nats")
    assert (settings.legacy.health_port, settings.legacy.path) == (8082, "/opportunities")


@pytest.mark.parametrize(
    ("word", "value"), [("true", True), ("True", True), ("1", True), ("false", False), ("FALSE", False), ("0", False)]
)
def test_yes_or_no_is_a_word_in_the_environment(load: Load, word: str, value: bool) -> None:
    assert load("[agent]\nauto_claim = true", {"P2PNODE_AGENT_AUTO_CLAIM": word}).settings.agent.auto_claim is value


@pytest.mark.parametrize("value", [True, False])
def test_yes_or_no_is_a_boolean_in_the_file(load: Load, value: bool) -> None:
    assert load(f"[agent]\nauto_claim = {str(value).lower()}").settings.agent.auto_claim is value


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [
        ("--role", "bridge", "bridge"),
        ("--name", "n", "n"),
        ("--data-dir", Path("/d"), Path("/d")),
        ("--listen", ["/ip4/127.0.0.1/tcp/0"], ("/ip4/127.0.0.1/tcp/0",)),
        (
            "--bootstrap",
            (f"/dns4/a/tcp/1/p2p/{PEER}", f"/dns4/b/tcp/1/p2p/{PEER}"),
            (f"/dns4/a/tcp/1/p2p/{PEER}", f"/dns4/b/tcp/1/p2p/{PEER}"),
        ),
        ("--announce", "/dns4/a/tcp/1", ("/dns4/a/tcp/1",)),
        ("--api", ("unix:/x",), ("unix:/x",)),
        ("--api-token-file", "/t", Path("/t")),
        ("--carrier", "0.0.0.0:9001", "0.0.0.0:9001"),
        ("--log-level", "error", "error"),
        ("--log-format", "text", "text"),
    ],
)
def test_every_flag_sets_its_key(flag: str, value: object, expected: object) -> None:
    loaded = load_settings({flag: value}, {"HOME": "/h"}, None)
    section, name = FLAGS[flag].split(".")
    assert getattr(getattr(loaded.settings, section), name) == expected
    assert loaded.sources[FLAGS[flag]] == f"flag {flag}"


def test_a_flag_that_does_not_exist_is_a_mistake_of_the_program() -> None:
    with pytest.raises(ValueError, match="--listen"):
        load_settings({"--lissen": "x"}, {"HOME": "/h"}, None)


@pytest.mark.parametrize(
    ("toml", "env", "key", "value", "source"),
    [
        (None, {"CHORUS_AGENT_ID": "7"}, "agent.id", "7", "env CHORUS_AGENT_ID"),
        ('[agent]\nid = "f"', {"CHORUS_AGENT_ID": "7"}, "agent.id", "7", "env CHORUS_AGENT_ID"),
        (None, {"CHORUS_AGENT_ID": "7", "P2PNODE_AGENT_ID": "8"}, "agent.id", "8", "env P2PNODE_AGENT_ID"),
        (None, {"CHORUS_AGENT_NAME": "n"}, "agent.name", "n", "env CHORUS_AGENT_NAME"),
        (None, {"CHORUS_AGENT_NAME": "n"}, "node.name", "n", "env CHORUS_AGENT_NAME"),
        ('[node]\nname = "f"', {"CHORUS_AGENT_NAME": "n"}, "node.name", "f", "file"),
        (None, {"CHORUS_AGENT_NAME": "n", "P2PNODE_NODE_NAME": "p"}, "node.name", "p", "env P2PNODE_NODE_NAME"),
        (None, {"CHORUS_P2P_PORT": "9123"}, "network.listen", ["/ip4/0.0.0.0/tcp/9123"], "env CHORUS_P2P_PORT"),
        (FILE, {"CHORUS_P2P_PORT": "9123"}, "network.listen", ["/ip4/10.0.0.1/tcp/1"], "file"),
        (
            f'[network]\nbootstrap = ["/dns4/f/tcp/1/p2p/{PEER}"]',
            {"CHORUS_BOOTSTRAP_PEERS": f"/dns4/a/tcp/1/p2p/{PEER},/dns4/b/tcp/2/p2p/{PEER}"},
            "network.bootstrap",
            [f"/dns4/a/tcp/1/p2p/{PEER}", f"/dns4/b/tcp/2/p2p/{PEER}"],
            "env CHORUS_BOOTSTRAP_PEERS",
        ),
        (None, {"CHORUS_AGENT_PORT": "8080"}, "agent.endpoint", "http://127.0.0.1:8080", "env CHORUS_AGENT_PORT"),
        ('[agent]\nendpoint = "http://a:1"', {"CHORUS_AGENT_PORT": "8080"}, "agent.endpoint", "http://a:1", "file"),
        (None, {}, "agent.endpoint", "", "default"),
    ],
)
def test_variables_of_chorus_are_known_and_yield_to_ours(
    load: Load, toml: str | None, env: dict[str, str], key: str, value: Any, source: str
) -> None:
    loaded = load(toml, env)
    section, name = key.split(".")
    assert settings_document(loaded)[section][name] == value
    assert loaded.sources[key].startswith(source)


def test_the_file_may_be_named_by_a_variable_and_the_flag_wins(tmp_path: Path) -> None:
    named, flagged = tmp_path / "named.toml", tmp_path / "flagged.toml"
    named.write_text('[node]\nname = "named"')
    flagged.write_text('[node]\nname = "flagged"')
    env = {"HOME": "/h", "P2PNODE_CONFIG": str(named), "P2PNODE_API": "unix:/nobody/looks/here"}
    assert load_settings({}, env, None).settings.node.name == "named"
    assert load_settings({}, env, flagged).sources["node.name"] == f"file {flagged}"


def test_the_data_directory_follows_the_xdg_specification() -> None:
    def data_dir(**env: str) -> str:
        return str(load_settings({}, {"HOME": "/home/a", **env}, None).settings.node.data_dir)

    assert data_dir() == "/home/a/.local/state/p2pnode"
    assert data_dir(XDG_STATE_HOME="/state") == "/state/p2pnode"
    assert data_dir(XDG_STATE_HOME="relative/is/ignored") == "/home/a/.local/state/p2pnode"


def test_settings_cannot_be_changed(load: Load) -> None:
    settings = load().settings
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.node.name = "other"  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.node = settings.node  # type: ignore[misc]


def test_what_is_rendered_loads_again_as_the_same_settings(load: Load) -> None:
    loaded = load(
        FILE, {"P2PNODE_AGENT_NAME": 'quo"te and \\ ü', "P2PNODE_API_TOKEN_FILE": "/t"}, api=("tcp:0.0.0.0:8090",)
    )
    rows = render_settings(loaded)
    assert [row.key for row in rows] == [key.dotted for key in keys()]
    assert {row.key: row.source for row in rows} == loaded.sources
    text = "\n".join(f"{row.key} = {row.value}" for row in rows)
    assert tomllib.loads(text) == settings_document(loaded)
    assert load(text).settings == loaded.settings


def test_importing_configuration_paths_and_logs_costs_no_heavy_library() -> None:
    probe = (
        "import sys, p2pnode.paths, p2pnode.logs, p2pnode.config;"
        "print({'pydantic', 'pydantic_core', 'multiaddr', 'libp2p', 'trio'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_loading_imports_neither_libp2p_nor_trio() -> None:
    probe = (
        "import sys, p2pnode.config as c;"
        f"c.load_settings({{'--bootstrap': '/dns4/a/tcp/1/p2p/{PEER}'}}, {{'HOME': '/h'}}, None);"
        "print({'libp2p', 'trio'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
