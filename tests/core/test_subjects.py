"""Topics and NATS subjects: the built-in pairs, configured ones, and what cannot be a subject."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.core.backbeat import BACKBEAT_TOPIC
from p2pnode.core.council.documents import CLAIMS_TOPIC, STATUS_TOPIC
from p2pnode.core.council.opportunity import OPPORTUNITY_TOPIC
from p2pnode.core.message import MAX_TOPIC_BYTES
from p2pnode.core.subjects import MAX_SUBJECT_BYTES, MEMBERS_SUBJECT, OTHER, Subjects, check_mapping
from p2pnode.errors import InvalidMessage
from tests.properties import many

ID = "7b1c9e9e-3f0a-4a7e-9d0d-0f2f7f1b1a11"
SUBJECTS = Subjects("east", ["alerts=ops.alerts", "hmmm=thoughts"])
COUNCIL_IDS = st.from_regex(r"[A-Za-z0-9_-]{1,128}", fullmatch=True)
TOPICS = st.one_of(
    st.sampled_from([*SUBJECTS.topics(), "hmmm", "other", "p2pnode.members"]),
    st.from_regex(r"hmmm\.[A-Za-z0-9_./:-]{0,40}", fullmatch=True),
    st.text(max_size=30).map(lambda text: f"hmmm.{text}"),
    st.text(max_size=30),
)


def matches(pattern: str, subject: str) -> bool:
    """Does a NATS subscription get a subject?"""
    tokens, found = pattern.split("."), subject.split(".")
    if tokens[-1] == ">" and len(found) >= len(tokens):
        del tokens[-1], found[len(tokens) :]
    return len(tokens) == len(found) and all(one in ("*", other) for one, other in zip(tokens, found, strict=True))


@pytest.mark.parametrize(
    ("topic", "subject"),
    [
        (OPPORTUNITY_TOPIC, "chorus.councils.forming"),
        (CLAIMS_TOPIC, f"chorus.councils.{ID}.claims"),
        (STATUS_TOPIC, f"chorus.councils.{ID}.status"),
        (BACKBEAT_TOPIC, "backbeat.status.east"),
        ("hmmm.thread-7", "hmmm.thread-7"),
        ("hmmm.a.b", "hmmm.a.b"),
        ("alerts", "ops.alerts"),
        ("hmmm", "thoughts"),
    ],
)
def test_each_carried_topic_has_its_subject_and_comes_back(topic: str, subject: str) -> None:
    assert SUBJECTS.subject_of(topic, {"council_id": ID}) == subject
    assert SUBJECTS.topic_of(subject) == (topic, ID if ID in subject else None)
    assert SUBJECTS.carries(topic)


@pytest.mark.parametrize(
    "topic", ["p2pnode.members", "councils.other", "ops.alerts", "hmm", "backbeat.status.east", ""]
)
def test_other_topics_are_not_carried(topic: str) -> None:
    assert SUBJECTS.subject_of(topic, {"council_id": ID}) is None
    assert not SUBJECTS.carries(topic)
    assert topic not in SUBJECTS.topics()


@pytest.mark.parametrize(
    "subject",
    [
        "chorus.councils",
        "chorus.councils.",
        f"chorus.councils.{ID}",
        f"chorus.councils.{ID}.votes",
        f"chorus.councils.{ID}.claims.x",
        "chorus.councils..claims",
        "chorus.councils.a b.status",
        "chorus.councils.*.status",
        f"chorus.councils.{'x' * 129}.status",
        "backbeat.status.west",
        "backbeat.status",
        "hmmm.",
        "hmmm.a..b",
        "hmmm.>",
        "hmmm.grün",
        "alerts",
        MEMBERS_SUBJECT,
        "",
    ],
)
def test_other_subjects_stand_for_no_topic(subject: str) -> None:
    assert SUBJECTS.topic_of(subject) is None


@pytest.mark.parametrize("topic", [CLAIMS_TOPIC, STATUS_TOPIC])
@pytest.mark.parametrize(
    ("document", "problem"),
    [
        (None, "no JSON object"),
        ({}, "missing"),
        ({"council_id": 7}, "missing, or no text"),
        ({"council_id": ""}, "missing"),
        ({"council_id": "a.b"}, "'a.b' is no single token"),
        ({"council_id": "*"}, "no single token"),
        ({"council_id": ">"}, "no single token"),
        ({"council_id": "a b"}, "no single token"),
        ({"council_id": f"{ID}\n"}, "no single token"),
        ({"council_id": "é"}, "no single token"),
        ({"council_id": "x" * 129}, "at most 128"),
    ],
)
def test_a_council_id_that_is_no_token_is_told(topic: str, document: dict[str, object] | None, problem: str) -> None:
    with pytest.raises(InvalidMessage, match=problem.replace("*", r"\*")) as caught:
        SUBJECTS.subject_of(topic, document)
    assert caught.value.reason == "council-id"


@pytest.mark.parametrize(
    "topic",
    [
        "hmmm.",
        "hmmm..a",
        "hmmm.a.",
        "hmmm.a b",
        "hmmm.a\x00",
        "hmmm.a\r\nPUB x",
        "hmmm.*",
        "hmmm.a.>",
        "hmmm.grün",
        "hmmm.\ud800",
        f"hmmm.{'a' * MAX_TOPIC_BYTES}",
        f"hmmm.{'a' * MAX_SUBJECT_BYTES}",
    ],
)
def test_a_topic_that_nats_refuses_as_a_subject_is_told(topic: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        SUBJECTS.subject_of(topic, None)
    assert caught.value.reason == "subject"


@many
@given(TOPICS, st.none() | COUNCIL_IDS | st.text(max_size=10) | st.integers())
def test_every_topic_comes_back_from_its_subject_and_is_watched(topic: str, council_id: object) -> None:
    try:
        subject = SUBJECTS.subject_of(topic, {"council_id": council_id})
    except InvalidMessage:
        assert topic in (CLAIMS_TOPIC, STATUS_TOPIC) or topic.startswith("hmmm.")
        return
    assert (subject is not None) == SUBJECTS.carries(topic)
    if subject is None:
        return
    assert SUBJECTS.topic_of(subject) == (topic, council_id if topic in (CLAIMS_TOPIC, STATUS_TOPIC) else None)
    assert sum(matches(pattern, subject) for pattern in SUBJECTS.watched()) == 1
    assert sum(matches(root, subject) for root in SUBJECTS.roots()) == 1
    assert SUBJECTS.label(subject) in SUBJECTS.watched()
    assert matches(SUBJECTS.label(subject), subject)


@many
@given(st.text(max_size=40) | st.text("chorus.councils.forming.hmmm.>*", max_size=40))
def test_any_subject_has_one_of_few_labels(subject: str) -> None:
    labels = {*SUBJECTS.watched(), *SUBJECTS.roots(), MEMBERS_SUBJECT, OTHER}
    assert SUBJECTS.label(subject) in labels
    found = SUBJECTS.topic_of(subject)
    if found is not None:
        topic, council_id = found
        assert SUBJECTS.subject_of(topic, {"council_id": council_id}) == subject


def test_no_two_filters_of_a_stream_overlap() -> None:
    roots = SUBJECTS.roots()
    assert roots == ("chorus.councils.>", "backbeat.status.east", "hmmm.>", "ops.alerts", "thoughts")
    assert not [(one, other) for one in roots for other in roots if one != other and matches(one, other)]


def test_what_is_watched_is_the_reference() -> None:
    assert Subjects("east").watched() == (
        "chorus.councils.forming",
        "chorus.councils.*.claims",
        "chorus.councils.*.status",
        "backbeat.status.east",
        "hmmm.>",
    )


@pytest.mark.parametrize(
    ("subject", "label"),
    [
        (f"chorus.councils.{ID}.status", "chorus.councils.*.status"),
        ("chorus.councils.*.status", "chorus.councils.*.status"),
        (f"chorus.councils.{ID}.votes", "chorus.councils.>"),
        ("hmmm.thread-7", "hmmm.>"),
        ("ops.alerts", "ops.alerts"),
        (MEMBERS_SUBJECT, MEMBERS_SUBJECT),
        ("elsewhere", OTHER),
    ],
)
def test_labels_name_no_council_and_no_thread(subject: str, label: str) -> None:
    assert SUBJECTS.label(subject) == label


@pytest.mark.parametrize(
    ("pairs", "reason", "problem"),
    [
        (["councils.claims=a"], "topic", "has its NATS subject already"),
        (["hmmm.x=a"], "topic", "has its NATS subject already"),
        (["a=x", "a=y"], "topic", "has its NATS subject already; drop a=y"),
        (["a=x", "b=x"], "subject", "stands for another topic already; drop b=x"),
        (["a=chorus.councils.extra"], "subject", "stands for another topic"),
        (["a=hmmm.x"], "subject", "stands for another topic"),
        (["a=backbeat.status.east"], "subject", "stands for another topic"),
        (["p2pnode.members=a"], "topic", "p2pnode's own"),
        (["a=p2pnode.members"], "subject", "own; choose another"),
        (["a=$JS.API.INFO"], "subject", "own; choose another"),
        (["a"], "subject", "no NATS subject"),
        (["=a"], "topic", "must not be empty"),
    ],
)
def test_pairs_that_overlap_are_refused(pairs: list[str], reason: str, problem: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        Subjects("east", pairs)
    assert caught.value.reason == reason
    assert problem in caught.value.detail


def test_another_clusters_heartbeats_may_be_mapped() -> None:
    subjects = Subjects("east", ["beats.west=backbeat.status.west"])
    assert subjects.topic_of("backbeat.status.west") == ("beats.west", None)


@pytest.mark.parametrize("subject", ["a..b", ".a", "a.", "a.*", "a.>", "a*b", "a b", "a\tb", "é", "", "a" * 256])
def test_a_configured_subject_is_plain_tokens(subject: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        check_mapping("alerts", subject)
    assert caught.value.reason == "subject"


@pytest.mark.parametrize("cluster", ["", "a.b", "*", "a b", "x" * 129])
def test_a_cluster_that_is_no_token_is_refused(cluster: str) -> None:
    with pytest.raises(InvalidMessage, match="no single token"):
        Subjects(cluster)
