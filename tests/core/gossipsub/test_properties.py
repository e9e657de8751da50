"""Any order of any inputs: no exception, no unbounded container, the same effects for the same seed."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2pnode.core.gossipsub.events import (
    AppScore,
    Deliver,
    Effect,
    FleetSize,
    Forward,
    Held,
    Inject,
    Input,
    PeerConnected,
    PeerDisconnected,
    PeerMisbehaved,
    PeerRefused,
    Priority,
    Protocol,
    Publish,
    RpcReceived,
    SendRpc,
    Subscribe,
    Tick,
    Unsubscribe,
    Validate,
    Validated,
)
from p2pnode.core.gossipsub.params import Params
from p2pnode.core.gossipsub.params_score import ScoreParams
from p2pnode.core.gossipsub.router import Router
from p2pnode.core.gossipsub.rpc import IHave, Prune, PxPeer, Rpc, Subscription
from p2pnode.core.message import Accept, Ignore, MessageId, Reject, SignedMessage, Topic
from p2pnode.core.peerid import PeerId
from tests.core.gossipsub.kit import ME, message, raw_of, verify

TINY = Params(
    seen_ids=8,
    history_windows=3,
    fanout_topics=2,
    max_ihave_ids=5,
    max_promises=6,
    max_iwant_ids=5,
    max_unwanted=6,
    max_idontwant_ids=4,
    max_validations=4,
    max_validations_per_peer=2,
    max_peers=12,
    max_topics=3,
    max_peer_topics=3,
    max_backoffs=6,
    max_owed=4,
    idontwant_bytes=20,
    flood_publish_bytes=30,
    score=ScoreParams(retained=4, colocation_threshold=1),
)

PEERS = [PeerId(f"p{number}") for number in range(15)]
peers = st.sampled_from([*PEERS, PeerId("me")])
topics = st.sampled_from([Topic(f"t{number}") for number in range(5)])
origins = st.sampled_from([ME, *(raw_of(peer) for peer in PEERS[:4]), b"\x00", b""])
messages: st.SearchStrategy[SignedMessage] = st.builds(
    lambda number, origin, topic, data, good: message(
        number, origin=origin, topic=topic, data=data, signature=b"good" if good else b"bad"
    ),
    st.integers(0, 25),
    origins,
    topics,
    st.sampled_from([b"", b"one", b"two", b"x" * 25, b"x" * 50]),
    st.integers(0, 9).map(bool),
)
ids: st.SearchStrategy[MessageId] = st.one_of(messages.map(lambda each: each.id), st.binary(max_size=90).map(MessageId))
id_lists = st.lists(ids, max_size=8).map(tuple)
prunes = st.builds(
    Prune,
    topics,
    st.lists(st.builds(PxPeer, peers, st.binary(max_size=4)), max_size=5).map(tuple),
    st.integers(0, 2**64 - 1),
)
rpcs = st.builds(
    Rpc,
    subscriptions=st.lists(st.builds(Subscription, topics, st.booleans()), max_size=6).map(tuple),
    publish=st.lists(messages, max_size=4).map(tuple),
    ihave=st.lists(st.builds(IHave, topics, id_lists), max_size=2).map(tuple),
    iwant=id_lists,
    graft=st.lists(topics, max_size=3).map(tuple),
    prune=st.lists(prunes, max_size=2).map(tuple),
    idontwant=id_lists,
)
verdicts = st.sampled_from([Accept(), Accept(relay=False), Ignore("late"), Reject("payload")])
connections = st.builds(
    lambda peer, protocol, outbound, ip: PeerConnected(peer, raw_of(peer), protocol, outbound, ip),
    peers,
    st.sampled_from(Protocol),
    st.booleans(),
    st.sampled_from([None, "8.8.8.8", "10.0.0.1", "nonsense"]),
)
inputs: st.SearchStrategy[Input] = st.one_of(
    connections,
    connections,
    st.builds(RpcReceived, peers, rpcs),
    st.builds(RpcReceived, peers, rpcs),
    st.builds(RpcReceived, peers, rpcs),
    st.builds(PeerDisconnected, peers),
    st.builds(Subscribe, topics),
    st.builds(Unsubscribe, topics),
    st.builds(Publish, messages.map(lambda each: replace(each, origin=ME))),
    st.builds(Inject, messages, st.just("nats")),
    st.builds(Validated, ids, verdicts),
    st.builds(Held, id_lists),
    st.builds(AppScore, peers, st.floats(-1000, 1000)),
    st.builds(PeerMisbehaved, peers, st.text(max_size=2), st.one_of(st.none(), topics)),
    st.builds(PeerRefused, peers, id_lists),
    st.builds(FleetSize, st.integers(0, 10_000)),
    st.just(Tick()),
)
steps = st.lists(st.tuples(inputs, st.sampled_from([0.0, 0.001, 0.4, 1.0, 5.0, 70.0, -3.0])), max_size=60)


def make(seed: int, direct: bool) -> Router:
    return Router(PeerId("me"), ME, TINY, Random(seed), verify, direct=PEERS[:1] if direct else ())


def run(router: Router, script: list[tuple[Input, float]], answer: bool) -> list[list[Effect]]:
    """Feed a script; with `answer`, judge at once what the router asks to be judged."""
    now, trace = 0.0, []
    for input_, passed in script:
        now += passed
        effects = router.handle(input_, now)
        trace.append(effects)
        if answer:
            trace += [
                router.handle(Validated(each.message.id, Accept()), now)
                for each in effects
                if isinstance(each, Validate)
            ]
    return trace


def check_bounds(router: Router) -> None:
    sizes, params = router.sizes(), TINY
    bounds = {
        "peers": params.max_peers + 1,
        "topics": params.max_topics,
        "subscriptions": (params.max_peers + 1) * params.max_peer_topics,
        "mesh_links": params.max_topics * (params.max_peers + 1),
        "fanout_topics": params.fanout_topics,
        "seen": params.seen_ids,
        "history_bytes": params.history_bytes,
        "validating": params.max_validations,
        "validating_bytes": params.max_validation_bytes,
        "backoffs": params.max_backoffs,
        "promises": params.max_promises,
        "unwanted": params.max_unwanted,
        "owed": (params.max_peers + 1) * params.max_owed,
        "scores_retained": params.score.retained,
        "counters": 300,
    }
    assert {name: size for name, size in sizes.items() if name in bounds and size > bounds[name]} == {}
    for topic in router.topics():
        assert set(router.mesh(topic)) <= set(router.topic_peers(topic)) <= set(router.peers())


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(script=steps, seed=st.integers(0, 2**32), direct=st.booleans(), answer=st.booleans())
def test_no_sequence_of_inputs_raises_or_outgrows_a_bound(
    script: list[tuple[Input, float]], seed: int, direct: bool, answer: bool
) -> None:
    router = make(seed, direct)
    now = 0.0
    for input_, passed in script:
        now += passed
        known = set(router.peers())
        for effect in router.handle(input_, now):
            if isinstance(effect, (Forward, SendRpc)):
                assert effect.peers
                assert len(set(effect.peers)) == len(effect.peers)
                assert set(effect.peers) <= known | set(router.peers())
            if isinstance(effect, Forward) and effect.priority is Priority.FORWARD:
                assert effect.message.origin not in {raw_of(peer) for peer in effect.peers}
            if answer and isinstance(effect, Validate):
                router.handle(Validated(effect.message.id, Accept()), now)
        check_bounds(router)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(script=steps, seed=st.integers(0, 2**32), answer=st.booleans())
def test_the_same_inputs_and_seed_give_the_same_effects(
    script: list[tuple[Input, float]], seed: int, answer: bool
) -> None:
    assert run(make(seed, False), script, answer) == run(make(seed, False), script, answer)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(script=steps)
def test_nothing_is_delivered_twice_while_it_is_remembered(script: list[tuple[Input, float]]) -> None:
    router = Router(PeerId("me"), ME, Params(), Random(1), verify)
    quiet = [(input_, passed if passed < 5 else 1.0) for input_, passed in script]
    delivered = [
        each.message.id for effects in run(router, quiet, True) for each in effects if isinstance(each, Deliver)
    ]
    assert len(delivered) == len(set(delivered))
