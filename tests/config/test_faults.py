"""Every fault is reported at once, each with the key, where it came from, and what would be right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from p2pnode.config import Loaded, load_settings
from p2pnode.errors import InvalidConfig

Load = Callable[..., Loaded]
Faults = Callable[..., dict[str, str]]

PEER = "12D3KooWSoC9Jm8FQ8bxFFVQHgZZ7x5vyVbDHyTxFeGCGKXc1Wvo"


def test_planted_faults_of_every_layer_are_reported_at_once(faults: Faults) -> None:
    toml = """
        colour = true
        [netwrok]
        listen = []
        [network]
        target_lnks = 3
        target_links = 40
        bootstrap = [
            "/ip4/10.0.0.1/tcp/9000/p2p/12D3KooWEZXjE41uU4EL2gpkAQeDXYok6wghN7wwNVPF5bwkaNfS",
            "/ip4/10.0.0.300/tcp/9000",
        ]
        dial_backoff_max_seconds = "soon"
        [gossip]
        topics = ["councils.forming", "two words"]
        degree = true
        heartbeat_seconds = nan
        [messages]
        keep_count = 1.5
        [agent]
        capabilities = "backend"
        name = 7
    """
    env = {
        "P2PNODE_NETWORK_LISTN": "/ip4/0.0.0.0/tcp/1",
        "P2PNODE_LOG_FORMAT": "xml",
        "CHORUS_P2P_PORT": "90000",
        "P2PNODE_MESSAGES_KEEP_BYTES": "12",
    }
    found = faults(toml, env, role="korus", api=("tcp:0.0.0.0:8090", "http://x"), announce=("/ip4/0.0.0.0/tcp/1",))
    assert found.keys() == {
        "colour (file FILE)",
        "netwrok (file FILE)",
        "network.target_lnks (file FILE)",
        "network.target_links (file FILE)",
        "network.bootstrap[1] (file FILE)",
        "network.dial_backoff_max_seconds (file FILE)",
        "gossip.topics[1] (file FILE)",
        "gossip.degree (file FILE)",
        "gossip.heartbeat_seconds (file FILE)",
        "messages.keep_count (file FILE)",
        "agent.capabilities (file FILE)",
        "agent.name (file FILE)",
        "env P2PNODE_NETWORK_LISTN",
        "log.format (env P2PNODE_LOG_FORMAT)",
        "network.listen[0] (env CHORUS_P2P_PORT)",
        "discovery.p2p_port (env CHORUS_P2P_PORT)",
        "messages.keep_bytes (env P2PNODE_MESSAGES_KEEP_BYTES)",
        "node.role (flag --role)",
        "api.listen[1] (flag --api)",
        "network.announce[0] (flag --announce)",
    }
    assert "more than network.max_links" in found["network.target_links (file FILE)"]
    assert found["node.role (flag --role)"].startswith("must be one of chorus, whoosh, bridge, bootstrap, not 'korus'")
    assert found["messages.keep_count (file FILE)"] == "must be a whole number, not 1.5"
    assert found["agent.capabilities (file FILE)"].startswith("must be a list of strings")
    assert "the port must be a number from 0 to 65535" in found["network.listen[0] (env CHORUS_P2P_PORT)"]


@pytest.mark.parametrize(
    ("toml", "env", "field", "meant"),
    [
        ("[netwrok]", {}, "netwrok (file FILE)", "did you mean network?"),
        ("[network]\nmax_lnks = 3", {}, "network.max_lnks (file FILE)", "did you mean network.max_links"),
        ("[node]\nlisten = []", {}, "node.listen (file FILE)", "did you mean network.listen or api.listen?"),
        ('role = "chorus"', {}, "role (file FILE)", "did you mean node.role?"),
        ("", {"P2PNODE_LOG_LEVLE": "info"}, "env P2PNODE_LOG_LEVLE", "did you mean P2PNODE_LOG_LEVEL"),
        ("", {"P2PNODE_LOG_LEVEL": "warn"}, "log.level (env P2PNODE_LOG_LEVEL)", "did you mean warning?"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_right_one(
    faults: Faults, toml: str, env: Mapping[str, str], field: str, meant: str
) -> None:
    assert meant in faults(toml, env)[field]


def test_an_unknown_variable_is_a_fault_even_when_empty(faults: Faults) -> None:
    assert list(faults(None, {"P2PNODE_ZZZZ": ""})) == ["env P2PNODE_ZZZZ"]


def test_variables_of_others_are_left_alone(load: Load) -> None:
    load(None, {"CHORUS_ROLE": "x", "NATS_URL": "nats://n:4222", "PATH": "/bin", "_P2PNODE_COMPLETE": "bash_source"})


@pytest.mark.parametrize(
    ("toml", "flags", "field", "problem"),
    [
        ("", {"api": ("tcp:0.0.0.0:8090",)}, "api.listen (flag --api)", "set api.token_file"),
        ('[api]\nlisten = ["tcp:node-7:8090"]', {}, "api.listen (file FILE)", "set api.token_file"),
        ("", {"api": ("tcp:127.0.0.1:9000",)}, "api.listen (flag --api)", "taken by network.listen"),
        ("", {"api": ("tcp:localhost:9000",)}, "api.listen (flag --api)", "taken by network.listen"),
        ("", {"api": ("unix:/x", "unix:/x")}, "api.listen (flag --api)", "listed twice"),
        ("[network]\nmax_links = 5", {}, "network.target_links (default)", "more than network.max_links (5)"),
        ("[gossip]\ndegree = 17", {}, "gossip.degree (file FILE)", "network.max_links is 16"),
        (
            f'[network]\nkey = "{"0b" * 32}"\nkey_file = "/k"',
            {},
            "network.key (file FILE)",
            "both are set; keep one of them",
        ),
        (
            '[nats]\nsubjects = ["alerts=ops.alerts", "alarms=ops.alerts"]',
            {},
            "nats.subjects (file FILE)",
            "'ops.alerts' stands for another topic already; drop alarms=ops.alerts",
        ),
        (
            '[nats]\nsubjects = ["alerts=backbeat.status.east"]\n[agent]\ncluster_id = "east"',
            {},
            "nats.subjects (file FILE)",
            "stands for another topic already",
        ),
    ],
)
def test_contradictions_are_refused(
    faults: Faults, toml: str, flags: dict[str, object], field: str, problem: str
) -> None:
    found = faults(toml, **flags)
    assert list(found) == [field]
    assert problem in found[field]


@pytest.mark.parametrize(
    "flags",
    [
        {"api": ("tcp:127.0.0.1:8090", "tcp:[::1]:8090", "tcp:localhost:8091", "unix:/x")},
        {"api": ("tcp:0.0.0.0:8090",), "api_token_file": "/token"},
        {"api": ("tcp:127.0.0.1:0", "tcp:127.0.0.1:0")},
        {"api": ("tcp:[::1]:9000",)},
        {"listen": ("/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/tcp/0")},
    ],
)
def test_listeners_that_go_together_are_accepted(load: Load, flags: dict[str, object]) -> None:
    load(**flags)


def test_a_contradiction_with_a_faulty_value_is_not_guessed_at(faults: Faults) -> None:
    found = faults('[network]\nmax_links = "few"\ntarget_links = 40')
    assert list(found) == ["network.max_links (file FILE)"]


@pytest.mark.parametrize(
    ("addr", "problem"),
    [
        ("127.0.0.1:9000", "must start with '/'"),
        ("", "must start with '/'"),
        ("/", "listens on /ip4/ADDRESS/tcp/PORT"),
        ("/ip4/127.0.0.1", "listens on /ip4/ADDRESS/tcp/PORT"),
        ("/ip4/127.0.0.1/udp/9000/quic-v1", "listens on /ip4/ADDRESS/tcp/PORT"),
        ("/ip4/127.0.0.1/tcp/9000/ws", "listens on /ip4/ADDRESS/tcp/PORT"),
        ("/dns4/localhost/tcp/9000", "listens on /ip4/ADDRESS/tcp/PORT"),
        (f"/ip4/127.0.0.1/tcp/9000/p2p/{PEER}", "listens on /ip4/ADDRESS/tcp/PORT"),
        ("/ip4/127.0.0.1/tcp/9_0", "the port must be a number"),
        ("/ip4/127.0.0.1/tcp/-1", "the port must be a number"),
        ("/ip4/127.0.0.1/tcp/ 1", "without blanks"),
        ("/ip4/127.0.0.1/tcp", "missing value for protocol: tcp"),
        ("/ip5/127.0.0.1/tcp/1", "unknown protocol: ip5"),
    ],
)
def test_a_listen_address_that_cannot_be_listened_on_is_refused(faults: Faults, addr: str, problem: str) -> None:
    assert problem in faults(f'[network]\nlisten = ["{addr}"]')["network.listen[0] (file FILE)"]


@pytest.mark.parametrize(
    ("addr", "problem"),
    [
        ("file:", "after file: comes the path"),
        ("dns:", "after dns: comes a DNS name"),
        ("dns:tasks..chorus", "after dns: comes a DNS name"),
        ("dns:tasks.chorus/x:9000", "after dns: comes a DNS name"),
        ("dns:tasks.chorus:0", "the port must be a number from 1 to 65535"),
        ("/dns4/tasks.CHORUS_chorus/tcp/9000", "a DNS name in a multiaddr holds no '_'"),
        ("/ip4/10.0.0.1/tcp/9000/p2p/12D3KooWBAD", "is no peer id"),
        ("/ip4/0.0.0.0/tcp/9000", "nobody can dial 0.0.0.0"),
        ("/ip6/::/tcp/9000", "nobody can dial ::"),
        ("/ip4/10.0.0.1/tcp/0", "nobody can dial port 0"),
        ("/ip4/10.0.0.1/udp/9000/quic-v1", "dials TCP only"),
        (f"/p2p/{PEER}", "dials TCP only"),
        (f"/ip4/10.0.0.1/tcp/9000/p2p/{PEER}/p2p-circuit", "dials TCP only"),
    ],
)
def test_a_bootstrap_address_that_cannot_be_dialled_is_refused(faults: Faults, addr: str, problem: str) -> None:
    assert problem in faults(bootstrap=(addr,))["network.bootstrap[0] (flag --bootstrap)"]


@pytest.mark.parametrize(
    "addr",
    [
        f"/ip4/10.0.0.1/tcp/9000/p2p/{PEER}",
        f"/ip6/fd00::1/tcp/9000/p2p/{PEER}",
        f"/dns/whoosh/tcp/9000/p2p/{PEER}",
        f"/dns4/whoosh.example.org/tcp/9000/p2p/{PEER}",
        f"/dns6/whoosh/tcp/9000/p2p/{PEER}",
    ],
)
def test_a_dialable_bootstrap_address_is_accepted(load: Load, addr: str) -> None:
    assert load(bootstrap=(addr,)).settings.network.bootstrap == (addr,)


def test_an_announced_address_must_not_name_a_peer(faults: Faults) -> None:
    found = faults(announce=(f"/ip4/10.0.0.1/tcp/9000/p2p/{PEER}",))
    assert "the node adds its own peer id" in found["network.announce[0] (flag --announce)"]


@pytest.mark.parametrize(
    ("addr", "problem"),
    [
        ("/run/x.sock", "'/run/x.sock': write unix:PATH (unix:/run/p2pnode/api.sock) or tcp:HOST:PORT"),
        ("http://127.0.0.1:1", "write unix:PATH"),
        ("unix:", "the path is missing"),
        ("unix:/" + "x" * 107, "at most 107 bytes"),
        ("tcp:8080", "end it with a port"),
        ("tcp::8080", "name a host"),
        ("tcp:127.0.0.1:http", "a port from 0 to 65535"),
        ("tcp:127.0.0.1:65536", "a port from 0 to 65535"),
        ("tcp:300.0.0.1:80", "neither a host name nor an IP address"),
        ("tcp:::1:80", "put an IPv6 address in brackets: tcp:[::1]:80"),
        ("tcp:[::g]:80", "[::g] is no IPv6 address: write one such as tcp:[::1]:80"),
    ],
)
def test_an_api_address_that_cannot_be_read_is_refused(faults: Faults, addr: str, problem: str) -> None:
    assert problem in faults(api=(addr,))["api.listen[0] (flag --api)"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("node.name", '"tab\\there"'),
        ("node.name", f'"{"x" * 65}"'),
        ("node.name", '"a/b"'),
        ("node.name", '"..hidden"'),
        ("node.name", f'"{"ü" * 33}"'),
        ("node.data_dir", '""'),
        ("node.data_dir", "3"),
        ("node.data_dir", '"~nobody-of-this-name/x"'),
        ("network.max_links", "0"),
        ("network.dial_backoff_max_seconds", "inf"),
        ("gossip.publish_burst", "0"),
        ("api.token_file", "false"),
        ("api.allowed_hosts", '["*"]'),
        ("api.allowed_hosts", '["http://x"]'),
        ("agent.capabilities", '[""]'),
        ("agent.capabilities", "[3]"),
        ("agent.endpoint", '"10.0.0.1:8080"'),
        ("agent.endpoint", '"http://x:99999"'),
        ("agent.cluster_id", '"a.b"'),
        ("agent.id", "2024-01-01"),
        ("agent.model", "{ name = 1 }"),
        ("trust.orchestrators", '["12D3KooWBAD"]'),
        ("trust.orchestrators", '["dashboard"]'),
        ("trust.bridges", f'["{PEER} "]'),
        ("trust.bridges", '[""]'),
        ("trust.bridges", f'"{PEER}"'),
        ("network.key_file", '"\\u0000"'),
        ("agent.auto_claim", "1"),
        ("agent.auto_claim", '"yes"'),
        ("agent.auto_claim", "[true]"),
        ("councils.takeover", "true"),
        ("councils.takeover", '"most"'),
        ("councils.formation_seconds", "0.5"),
        ("councils.formation_seconds", "604801"),
        ("councils.formation_seconds", "true"),
    ],
)
def test_a_value_out_of_its_range_or_type_is_refused(faults: Faults, key: str, value: str) -> None:
    found = faults(f"{key} = {value}")
    assert [field.split(" ")[0].split("[")[0] for field in found] == [key]


def test_a_section_that_is_no_table_is_refused(faults: Faults) -> None:
    assert "must be a table, [node]" in faults("node = 3")["node (file FILE)"]


@pytest.mark.parametrize(
    ("toml", "place"),
    [
        ('[node]\nname = "a\n', "line 2, column 10"),
        ("[node]\nrole = chorus\n", "line 2, column 8"),
        ("[node]\nname =", "line 2, column 7"),
        ("[node\n", "line 1, column 6"),
        ("[node]\nname = 'a'\nname = 'b'\n", "line 3, column 11"),
        ('[network]\nlisten = [\n"a",', "line 3, column 5"),
    ],
)
def test_a_syntax_error_is_told_with_line_and_column_beside_other_faults(faults: Faults, toml: str, place: str) -> None:
    found = faults(toml, {"P2PNODE_LOG_LEVEL": "loud"})
    assert found.keys() == {f"file FILE, {place}", "log.level (env P2PNODE_LOG_LEVEL)"}
    assert found[f"file FILE, {place}"].startswith("is no TOML: ")


def test_a_file_that_is_not_utf_8_is_refused_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "latin.toml"
    file.write_bytes(b"[node]\nname = 'gr\xfcn'\n")
    with pytest.raises(InvalidConfig, match="line 2: is not UTF-8"):
        load_settings({}, {"HOME": "/h"}, file)


@pytest.mark.parametrize("by_flag", [True, False])
def test_a_missing_file_is_told_with_who_named_it_beside_other_faults(tmp_path: Path, by_flag: bool) -> None:
    missing = tmp_path / "missing.toml"
    env = {"HOME": "/h"} if by_flag else {"HOME": "/h", "P2PNODE_CONFIG": str(missing)}
    with pytest.raises(InvalidConfig) as caught:
        load_settings({"--role": "x"}, env, missing if by_flag else None)
    assert [each.field for each in caught.value.faults] == [
        "flag --config" if by_flag else "env P2PNODE_CONFIG",
        "node.role (flag --role)",
    ]
    assert caught.value.faults[0].problem == f"{missing} cannot be read: No such file or directory"


def test_a_directory_given_as_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="Is a directory"):
        load_settings({}, {"HOME": "/h"}, tmp_path)


def test_a_user_without_home_is_told_to_name_a_data_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("p2pnode.paths.Path.home", homeless)
    with pytest.raises(InvalidConfig, match="--data-dir"):
        load_settings({}, {}, None)
    assert load_settings({"--data-dir": "/d"}, {}, None).settings.node.data_dir == Path("/d")


def test_the_wrong_file_ends_the_command_with_64(faults: Faults, load: Load) -> None:
    with pytest.raises(InvalidConfig) as caught:
        load("x = 1")
    assert caught.value.exit_code == 64
    assert "the configuration has 1 fault:" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("mode", '"swarm"', "must be one of auto, docker-swarm, dns, mdns, static, not 'swarm'"),
        ("mdns", "true", "must be one of auto, on, off"),
        ("docker_host", '"ssh://host"', "ssh is not supported; forward the socket"),
        ("docker_host", '"https://host:2376"', "TLS is not supported"),
        ("docker_host", '"tcp://user:pw@host:1"', "must be unix:///PATH"),
        ("docker_host", '"tcp://host"', "must be unix:///PATH, tcp://HOST:PORT or http://HOST:PORT"),
        ("docker_host", '"unix://var/run/docker.sock"', "must be unix:///PATH"),
        ("services", '["CHORUS chorus"]', "must be a service's name as `docker service ls` prints it"),
        ("p2p_port", "0", "must be from 1 to 65535"),
        ("refresh_seconds", "0.1", "must be from 1 to 3600"),
    ],
)
def test_wrong_discovery_settings_are_told_with_what_would_be_right(
    faults: Faults, key: str, value: str, problem: str
) -> None:
    (told,) = faults(f"[discovery]\n{key} = {value}").values()
    assert problem in told


def test_what_is_neither_yes_nor_no_is_told_with_what_would_be_right(faults: Faults) -> None:
    found = faults("", {"P2PNODE_AGENT_AUTO_CLAIM": "on"})
    assert found == {
        "agent.auto_claim (env P2PNODE_AGENT_AUTO_CLAIM)": (
            "must be true or false (in the environment also 1 or 0), not 'on'"
        )
    }


def test_a_wrong_network_to_announce_is_told(faults: Faults) -> None:
    found = faults('[network]\nannounce_cidr = ["10.0.1.7/24", "overlay"]')
    assert found.keys() == {"network.announce_cidr[0] (file FILE)", "network.announce_cidr[1] (file FILE)"}
    assert "has host bits set" in found["network.announce_cidr[0] (file FILE)"]
    assert "must be a network such as 10.0.1.0/24" in found["network.announce_cidr[1] (file FILE)"]


SERVER = '[nats]\nurl = ["nats://n:4222"]\n'


@pytest.mark.parametrize(
    ("toml", "field", "problem"),
    [
        ('[carriers]\nrollback = "nats"', "carriers.rollback", "nats needs a server: set nats.url (NATS_URL)"),
        ('[carriers]\nnats = "always"', "carriers.nats", "always needs a server: set nats.url (NATS_URL)"),
        ('[carriers]\ngossip = "off"\nhttp = "off"', "carriers.gossip", "is off, and so is every other road"),
        (
            f'{SERVER}[carriers]\ngossip = "off"\nnats = "off"\nhttp = "off"',
            "carriers.gossip",
            "is off, and so is every other road",
        ),
        (f'{SERVER}password = "p"', "nats.password", "is set without nats.user (NATS_USER)"),
        (f'{SERVER}tls_key_file = "/k"', "nats.tls_key_file", "is set without nats.tls_cert_file"),
    ],
)
def test_roads_that_cannot_carry_and_half_a_login_are_told(faults: Faults, toml: str, field: str, problem: str) -> None:
    found = faults(toml)
    assert list(found) == [f"{field} (file FILE)"]
    assert found[f"{field} (file FILE)"].startswith(problem)


@pytest.mark.parametrize(
    "toml",
    [
        '[node]\nrole = "bridge"\n[carriers]\nrollback = "nats"',
        '[node]\nrole = "bridge"\n[carriers]\ngossip = "off"\nhttp = "off"',
        f'{SERVER}[carriers]\nrollback = "nats"\nnats = "off"',
        f'{SERVER}[carriers]\ngossip = "off"\nhttp = "off"',
        '[carriers]\ngossip = "off"\nnats = "off"\nhttp = "off"\nrollback = "http"',
        f'{SERVER}user = "u"\npassword = "p"\ntls_cert_file = "/c"\ntls_key_file = "/k"',
        f'{SERVER}tls_cert_file = "/both"',
    ],
)
def test_one_road_that_can_carry_and_a_whole_login_are_good(tmp_path: Path, toml: str) -> None:
    file = tmp_path / "p2pnode.toml"
    file.write_text(toml)
    load_settings({}, {"HOME": "/h"}, file)


def test_the_words_to_choose_from_hold_no_empty_one(faults: Faults) -> None:
    found = faults('[carriers]\nrollback = "foo"')
    assert found == {"carriers.rollback (file FILE)": "must be one of nats, http, not 'foo'"}


def test_contradicting_ways_of_discovery_are_told(faults: Faults) -> None:
    found = faults(
        '[network]\nannounce = ["/ip4/10.0.0.1/tcp/9000"]\nannounce_cidr = ["10.0.0.0/8"]\n'
        '[discovery]\nmode = "mdns"\nmdns = "off"'
    )
    assert found == {
        "network.announce_cidr (file FILE)": "network.announce names the addresses already; keep one of them",
        "discovery.mdns (file FILE)": "is off, but discovery.mode is mdns; drop one of them",
    }


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("webhook", '"127.0.0.1:8080"', "must be a URL such as http://10.0.1.7:8080"),
        ("webhook", '"ftp://agent/x"', "must be a URL such as http://10.0.1.7:8080"),
        ("webhook", '"http://user:word@agent/x"', "must not hold a user or password"),
        ("webhook", '"http://agent/x#y"', "must not hold a fragment (#y)"),
        ("webhook_timeout_seconds", "0", "must be from 0.1 to 3600"),
        ("webhook_attempts", "0", "must be from 1 to 1000000"),
    ],
)
def test_wrong_webhook_settings_are_told_with_what_would_be_right(
    faults: Faults, key: str, value: str, problem: str
) -> None:
    (told,) = faults(f"[agent]\n{key} = {value}").values()
    assert problem in told


def test_topics_without_a_webhook_are_told(faults: Faults) -> None:
    found = faults('[agent]\nwebhook_topics = ["councils.forming"]')
    assert "no agent.webhook to post them to" in found["agent.webhook_topics (file FILE)"]


def test_the_password_in_a_refused_webhook_is_not_repeated(faults: Faults) -> None:
    (told,) = faults('[agent]\nwebhook = "http://user:hunter2@agent/x"').values()
    assert "hunter2" not in told


@pytest.mark.parametrize("port", ["0", "65536", "99999"])
def test_a_port_of_nats_that_is_none_is_named_with_its_server(faults: Faults, port: str) -> None:
    problem = faults(f'[nats]\nurl = ["nats://n:{port}"]')["nats.url[0] (file FILE)"]
    assert problem == f"port {port} of nats://n:{port} is out of range: 1 to 65535"


@pytest.mark.parametrize("url", ["nats://u:99999/s3cret@h:1", "nats://u:s3cret@h:99999", "nats://u:s3cret"])
def test_a_nats_url_that_may_hold_a_password_is_not_repeated(faults: Faults, url: str) -> None:
    problem = faults(f'[nats]\nurl = ["{url}"]')["nats.url[0] (file FILE)"]
    assert "nats://HOST:PORT" in problem
    assert not any(each in problem for each in ("s3cret", "99999"))
