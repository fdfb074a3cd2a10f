"""The commit table and the tokens that drive it: never two guests, and a way out of every state."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from sealift.errors import PeerError, SealError, UserError
from sealift.guest.handler.commit import FACTS, START, STEPS, Commit, Event, Role, State
from sealift.wire.token import TokenKind

from .rig import Hosts, write_some

MADE_BY = {Event.ACCEPT: "PREPARED", Event.MAKE_FINAL: "FINAL", Event.MAKE_STARTED: "STARTED"}
TAKEN_BY = {
    Event.TAKE_PREPARED: "PREPARED",
    Event.TAKE_FINAL: "FINAL",
    Event.TAKE_STARTED: "STARTED",
    Event.TAKE_ABORTED: "ABORTED",
}

SNAPSHOT = {State.SAVING, State.HELD, State.SAVED}

Situation = tuple[State, State, frozenset[str], bool]
"""Source, target, tokens in the world, and whether the source has left this migration."""


def test_every_state_is_described_and_reachable() -> None:
    reached = set(START.values())
    while True:
        found = {to for steps in STEPS.values() for start, to in steps.items() if start in reached}
        if found <= reached:
            break
        reached |= found
    assert reached == set(State) == set(FACTS)
    assert set(STEPS) == set(Event)


def following(situation: Situation) -> Iterator[Situation]:
    """Every situation one step on; tokens stay in the world and may be delivered at any time."""
    source, target, tokens, left = situation
    for event in Event:
        if event in TAKEN_BY and TAKEN_BY[event] not in tokens:
            continue
        made = tokens | {MADE_BY[event]} if event in MADE_BY else tokens
        # A second offer is a cancel and another migration; so is whatever follows a return to RUNNING. A snapshot made
        # before leaves nothing behind.
        again = event is Event.OFFER and source is not State.RUNNING
        if source in STEPS[event] and not left and not again:
            to = STEPS[event][source]
            yield to, target, made, to is State.RUNNING and source not in SNAPSHOT
        if target in STEPS[event] and target is not State.STARTED:
            to = STEPS[event][target]
            yield source, to, made | {"ABORTED"} if to is State.ABORTED else made, left


@pytest.mark.attack(
    "tokens", "delivers them any number of times in any order: every course through both tables", gains="nothing"
)
def test_source_and_target_can_never_both_run() -> None:
    """Test all interleavings of both tables, tokens being delivered any number of times in any order."""
    start: Situation = (State.RUNNING, State.WAITING, frozenset(), False)
    todo, seen = [start], {start}
    while todo:
        for situation in following(todo.pop()):
            source, target, *_ = situation
            assert not (FACTS[source].runs and FACTS[target].runs), situation
            if situation not in seen:
                seen.add(situation)
                todo.append(situation)
    ends = {(source, target) for source, target, *_ in seen}
    assert (State.GONE, State.STARTED) in ends
    assert (State.RUNNING, State.ABORTED) in ends


def before_it_runs(start: State) -> set[State]:
    """What a receiver can be in until it is a source like any other."""
    states, todo = {start}, [start]
    while todo:
        state = todo.pop()
        found = {steps[state] for steps in STEPS.values() if state in steps} - states
        states |= found
        todo += found - {State.STARTED}
    return states


def test_a_receiver_for_a_migration_cannot_restore_nor_the_other_way_round() -> None:
    """The only steps past FINAL are of a handler that the owner released for one snapshot."""
    migrated, restored = before_it_runs(State.WAITING), before_it_runs(State.BLANK)
    assert migrated & restored == {State.READY, State.STARTED, State.ABORTED}
    assert {State.RESTORING, State.RESTORED} <= restored
    assert {State.RECEIVING, State.PREPARED} <= migrated


@pytest.mark.parametrize(("event", "state"), list(itertools.product(Event, State)))
def test_an_illegal_step_names_the_state_and_the_way_out(event: Event, state: State) -> None:
    commit = Commit(Role.SOURCE)
    commit.state = state
    if commit.allows(event):
        commit.step(event)
        assert commit.state is STEPS[event][state]
        return
    with pytest.raises(UserError) as caught:
        commit.step(event)
    assert state.name in str(caught.value)
    assert FACTS[state].way_out in str(caught.value)
    assert commit.state is state


def prepared() -> Hosts:
    hosts = Hosts()
    write_some(hosts.guest)
    vmm = hosts.connect()
    vmm.deliver([*vmm.round(), *vmm.finish()])
    return hosts


def test_until_final_a_cancel_is_local_and_the_guest_runs_again() -> None:
    hosts = prepared()
    hosts.source.deliver(hosts.target.token(TokenKind.PREPARED))
    hosts.source.cancel()
    assert hosts.source.may_run
    with pytest.raises(UserError, match="cannot make the FINAL token"):
        hosts.source.token(TokenKind.FINAL)


def test_after_final_only_the_targets_word_counts() -> None:
    hosts = prepared()
    hosts.source.deliver(hosts.target.token(TokenKind.PREPARED))
    hosts.source.token(TokenKind.FINAL)
    for attempt in (hosts.source.cancel, hosts.source.offer, hosts.source.begin_epoch):
        with pytest.raises(UserError, match="FENCED"):
            attempt()
    assert not hosts.source.may_run


@pytest.mark.attack("tokens", "gives FINAL to a target whose ABORTED gave the guest back", gains="nothing")
def test_an_aborted_target_gives_the_guest_back_and_never_starts() -> None:
    hosts = prepared()
    hosts.source.deliver(hosts.target.token(TokenKind.PREPARED))
    final = hosts.source.token(TokenKind.FINAL)
    aborted = hosts.target.token(TokenKind.ABORTED)
    with pytest.raises(SealError, match="no migration is under way"):
        hosts.target.deliver(final)
    assert hosts.source.deliver(aborted) is TokenKind.ABORTED
    assert (hosts.source.may_run, hosts.target.may_run) == (True, False)
    assert hosts.source.deliver(aborted) is None
    with pytest.raises(UserError):
        hosts.source.token(TokenKind.FINAL)


def test_a_target_that_took_final_may_still_abort() -> None:
    hosts = prepared()
    hosts.source.deliver(hosts.target.token(TokenKind.PREPARED))
    hosts.target.deliver(hosts.source.token(TokenKind.FINAL))
    assert hosts.target.state is State.READY
    hosts.source.deliver(hosts.target.token(TokenKind.ABORTED))
    assert hosts.source.may_run
    with pytest.raises(UserError, match="ABORTED"):
        hosts.target.token(TokenKind.STARTED)


def test_a_started_target_cannot_abort() -> None:
    hosts = prepared()
    hosts.source.deliver(hosts.target.token(TokenKind.PREPARED))
    hosts.target.deliver(hosts.source.token(TokenKind.FINAL))
    hosts.target.token(TokenKind.STARTED)
    with pytest.raises(UserError, match="no ABORTED token"):
        hosts.target.token(TokenKind.ABORTED)
    hosts.target.cancel()
    assert hosts.target.may_run


def test_tokens_can_be_fetched_and_delivered_twice() -> None:
    hosts = prepared()
    source, target = hosts.source, hosts.target
    tokens = {}
    for maker, taker, kind in (
        (target, source, TokenKind.PREPARED),
        (source, target, TokenKind.FINAL),
        (target, source, TokenKind.STARTED),
    ):
        tokens[kind] = maker.token(kind)
        assert maker.token(kind) == tokens[kind]
        assert taker.deliver(tokens[kind]) is kind
        assert taker.deliver(tokens[kind]) is None
    assert source.token(TokenKind.FINAL) == tokens[TokenKind.FINAL]
    assert target.token(TokenKind.PREPARED) == tokens[TokenKind.PREPARED]
    assert (source.state, target.state) == (State.GONE, State.STARTED)


def test_a_failed_target_tells_the_sending_source_which_then_runs_on() -> None:
    hosts = Hosts()
    vmm = hosts.connect()
    with pytest.raises(PeerError):
        vmm.deliver([b"nonsense"])
    hosts.source.deliver(hosts.target.token(TokenKind.ABORTED))
    assert hosts.source.state is State.RUNNING


@pytest.mark.attack("tokens", "brings an ABORTED of before the close record to a fenced source", gains="nothing")
def test_an_abort_from_before_the_close_cannot_unfence_the_source() -> None:
    """Test that ABORTED without the close record's digest is refused by a fenced source."""
    hosts = prepared()
    hosts.source.deliver(hosts.target.token(TokenKind.PREPARED))
    hosts.source.token(TokenKind.FINAL)
    incoming = hosts.target._incoming
    assert incoming is not None
    incoming.desk.close_digest = bytes(32)
    with pytest.raises(SealError, match="another stream"):
        hosts.source.deliver(incoming.desk.make(TokenKind.ABORTED))
    assert hosts.source.state is State.FENCED


@pytest.mark.attack("tokens", "brings a PREPARED about another stream of the same migration", gains="nothing")
def test_a_token_about_another_stream_of_this_migration_is_refused() -> None:
    hosts = prepared()
    incoming = hosts.target._incoming
    assert incoming is not None
    incoming.desk.close_digest = bytes(31) + b"\1"
    with pytest.raises(SealError, match="another stream"):
        hosts.source.deliver(incoming.desk.make(TokenKind.PREPARED))
    assert hosts.source.state is State.CLOSED


@pytest.mark.attack("receivers", "offers a receiver a second migration", gains="nothing")
def test_a_receiver_serves_one_session_in_its_life() -> None:
    hosts = Hosts()
    hosts.connect()
    with pytest.raises(UserError, match="RECEIVING"):
        hosts.target.answer(hosts.source.offer())
    hosts.target.cancel()
    with pytest.raises(UserError, match="ABORTED"):
        hosts.target.answer(hosts.source.offer())


def test_a_token_of_the_wrong_side_cannot_be_made() -> None:
    hosts = prepared()
    for handler, kind in ((hosts.source, TokenKind.STARTED), (hosts.target, TokenKind.FINAL)):
        with pytest.raises(UserError):
            handler.token(kind)
    with pytest.raises(UserError, match="no ABORTED token"):
        hosts.source.token(TokenKind.ABORTED)
