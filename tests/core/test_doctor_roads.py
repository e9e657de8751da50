"""The doctor on the other roads: each finding about NATS, HTTP and bridges comes from its facts and from no others."""

from __future__ import annotations

import ast
import dataclasses
from typing import Any

import pytest

from p2pnode.core.crossing import BROKER_CODES, LAG_SECONDS, REFUSED_SECONDS, ROLL_CLOCK_SECONDS
from p2pnode.core.doctor import diagnose, summary
from p2pnode.core.facts import BridgeFacts, BrokerFacts, Facts, Refusal, RoadFacts, RoadsFacts
from p2pnode.core.findings import Finding
from tests.core.test_doctor import ALONE, HEALTHY, PACKAGE, facts, only

OFF, UP = RoadFacts("off"), RoadFacts("always", True)
HTTP_DOWN = RoadFacts("always", False, "nobody tells where it takes messages by HTTP")
NATS_DOWN = RoadFacts("always", False, "nats://backbeat-nats:4222 cannot be reached")
UNREACHABLE = BrokerFacts("nats://backbeat-nats:4222", False, "unreachable", "it cannot be reached", "start it")


def roads(base: Facts = HEALTHY, **change: Any) -> Facts:
    assert HEALTHY.roads is not None
    return facts(base, roads=dataclasses.replace(HEALTHY.roads, **change))


def bridge(**change: Any) -> Facts:
    assert HEALTHY.bridge is not None
    return facts(bridge=dataclasses.replace(HEALTHY.bridge, **change))


def code_and_severity(finding: Finding) -> tuple[str, str]:
    return finding.code, finding.severity


# -- NATS ------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [code.removeprefix("nats-") for code in BROKER_CODES])
@pytest.mark.parametrize("connected", [True, False])
def test_what_is_wrong_with_nats_is_told_in_the_brokers_words(code: str, connected: bool) -> None:
    finding = only(roads(broker=BrokerFacts("nats://n:4222", connected, code, "the problem", "the fix")))
    assert code_and_severity(finding) == (f"nats-{code}", "degraded")
    assert (finding.title, finding.fix) == ("the problem", "the fix")
    assert finding.evidence == (f"nats://n:4222: {'connected' if connected else 'not connected'}",)


def test_a_server_that_is_not_connected_for_no_known_reason_is_unreachable_after_the_start() -> None:
    silent = roads(broker=BrokerFacts())
    assert code_and_severity(only(silent)) == ("nats-unreachable", "degraded")
    assert "nats.url" in only(silent).fix
    assert diagnose(dataclasses.replace(silent, uptime_seconds=1.0)).findings == ()


def test_a_bridge_without_a_server_tells_how_much_waits_and_no_lag_of_its_own() -> None:
    late = dataclasses.replace(bridge(lag_seconds=90.4, waiting=2), roads=roads(broker=UNREACHABLE).roads)
    finding = only(late)
    assert finding.code == "nats-unreachable"
    assert finding.evidence[-1] == "2 messages for NATS on this bridge's disk, the oldest for 90 s"
    assert "bridge lag" not in diagnose(late).checked


def test_a_node_without_nats_has_nothing_to_check_there() -> None:
    diagnosis = diagnose(facts(roads=RoadsFacts({"gossip": UP, "nats": OFF, "http": OFF}), bridge=None))
    assert diagnosis.findings == ()
    assert {"NATS", "plain NATS clients", "bridge lag", "import keys"}.isdisjoint(diagnosis.checked)


def test_every_trouble_of_the_broker_has_a_code_here() -> None:
    told = set()
    for file in sorted((PACKAGE / "carriers" / "nats").glob("*.py")):
        for call in ast.walk(ast.parse(file.read_text())):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Trouble":
                told |= {str(each.value) for each in call.args[:1] if isinstance(each, ast.Constant)}
    assert {"unreachable", "authorization", "credentials"} <= told
    assert {f"nats-{code}" for code in told} <= set(BROKER_CODES)


def test_the_summary_names_the_server_only_when_it_is_connected() -> None:
    assert "backbeat-nats" in summary(HEALTHY)
    assert "backbeat-nats" not in summary(roads(broker=UNREACHABLE))


# -- roads -----------------------------------------------------------------------------


def test_a_rollback_to_http_that_nobody_takes_is_failed_and_says_the_way_back() -> None:
    stuck = roads(roads={"gossip": OFF, "nats": OFF, "http": HTTP_DOWN}, rollback="http", waiting=1, broker=None)
    finding = only(stuck)
    assert code_and_severity(finding) == ("no-road", "failed")
    assert "carriers.rollback is http" in finding.title
    assert finding.evidence == ("gossip: off", f"http: {HTTP_DOWN.why}", "nats: off", "1 message of this node waits")
    assert "rollback=off" in finding.fix
    assert "--carrier HOST:PORT" in finding.fix
    assert "nats.url" not in finding.fix


def test_a_rollback_to_nats_without_a_server_names_both_troubles_and_no_http() -> None:
    stuck = roads(roads={"gossip": OFF, "nats": NATS_DOWN, "http": OFF}, rollback="nats", broker=UNREACHABLE)
    first, second = diagnose(stuck).findings
    assert [code_and_severity(each) for each in (first, second)] == [
        ("no-road", "failed"),
        ("nats-unreachable", "degraded"),
    ]
    assert "--carrier" not in first.fix


def test_gossip_off_without_a_rollback_is_put_on_again() -> None:
    finding = only(roads(roads={"gossip": OFF, "nats": OFF, "http": HTTP_DOWN}, broker=None))
    assert "gossip=always" in finding.fix
    assert "gossip is off" in finding.title


@pytest.mark.parametrize(
    "there",
    [
        {"gossip": OFF, "nats": UP, "http": OFF},
        {"gossip": OFF, "nats": NATS_DOWN, "http": UP},
        {"gossip": UP, "nats": NATS_DOWN, "http": HTTP_DOWN},
    ],
)
def test_one_road_that_carries_is_enough(there: dict[str, RoadFacts]) -> None:
    assert diagnose(roads(roads=there, broker=None)).findings == ()


def test_a_node_that_is_alone_is_degraded_while_another_road_carries_its_messages() -> None:
    assert diagnose(ALONE).status == "failed"
    assert code_and_severity(only(roads(ALONE, carried=True))) == ("alone", "degraded")
    assert code_and_severity(only(roads(ALONE, carried=False))) == ("alone", "failed")


# -- bridges ---------------------------------------------------------------------------


def test_plain_clients_that_nobody_signs_for_need_a_bridge() -> None:
    lone = facts(roads(plain=3, bridged=False), bridge=None)
    finding = only(lone)
    assert code_and_severity(finding) == ("no-bridge", "degraded")
    assert "3 unsigned messages" in finding.evidence[0]
    assert "p2pnode bridge" in finding.fix
    assert diagnose(facts(roads(plain=3, bridged=True), bridge=None)).findings == ()
    assert diagnose(facts(roads(plain=0, bridged=False), bridge=None)).findings == ()


def test_a_bridge_is_late_when_a_message_waits_although_nats_is_well() -> None:
    finding = only(bridge(lag_seconds=LAG_SECONDS, waiting=7))
    assert code_and_severity(finding) == ("bridge-lag", "degraded")
    assert "since 30 s" in finding.title
    assert finding.evidence == ("7 messages to be published",)
    assert diagnose(bridge(lag_seconds=LAG_SECONDS - 0.1, waiting=7)).findings == ()


def test_messages_that_cannot_be_stored_are_told() -> None:
    assert code_and_severity(only(bridge(troubled=2))) == ("bridge-import", "degraded")


def test_bridges_with_other_keys_are_named_with_them() -> None:
    finding = only(bridge(other_keys={"b-3": "12D3KooWx", "b-2": "12D3KooWimport", "b-1": "12D3KooWy"}))
    assert code_and_severity(finding) == ("import-keys", "degraded")
    assert finding.evidence == ("me: 12D3KooWimport", "b-1: 12D3KooWy", "b-3: 12D3KooWx")
    assert "bridge.import_key_file" in finding.fix
    assert diagnose(bridge(other_keys={})).findings == ()


def test_an_import_key_that_is_not_trusted_is_a_note() -> None:
    finding = only(bridge(trusted=False))
    assert code_and_severity(finding) == ("import-key-untrusted", "note")
    assert "12D3KooWimport" in finding.evidence[0]
    assert "trust.bridges" in finding.fix


def test_a_bridge_with_another_clock_is_told_while_it_is_heard() -> None:
    detail = "the roll of 12D3KooWb is dated 400 s ahead; set its clock or ours"
    finding = only(bridge(refused=(Refusal("p2pnode.members", "stamp", detail, ROLL_CLOCK_SECONDS),)))
    assert code_and_severity(finding) == ("bridge-clock", "degraded")
    assert finding.evidence == (detail,)
    past = bridge(refused=(Refusal("p2pnode.members", "stamp", detail, ROLL_CLOCK_SECONDS + 1),))
    assert diagnose(past).findings == ()


def test_what_was_refused_lately_is_a_note_with_subject_reason_and_detail() -> None:
    new = Refusal("chorus.councils.forming", "json", "the body is no JSON object", 5.0)
    old = dataclasses.replace(new, detail="long ago", seconds_ago=REFUSED_SECONDS + 1)
    finding = only(bridge(refused=(new, old)))
    assert code_and_severity(finding) == ("bridge-refused", "note")
    assert finding.evidence == ("chorus.councils.forming: json: the body is no JSON object",)
    assert diagnose(bridge(refused=(old,))).findings == ()


def test_only_a_bridge_is_examined_as_one() -> None:
    checked = set(diagnose(facts(bridge=None)).checked)
    assert {"bridge lag", "bridge imports", "import keys", "import key", "bridge clock"}.isdisjoint(checked)
    assert isinstance(HEALTHY.bridge, BridgeFacts)
