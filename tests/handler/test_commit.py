"""The commit table and the tokens that drive it: never two guests, and a way out of every state."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from sealift.errors import PeerError, SealError, UserError
from sealift.guest.handler.commit import FACTS, START, STEPS, Commit, Event, Role, State
from sealift.guest.handler.keys import mac
from sealift.launch.secrets import resume_key, resume_request_key
from sealift.wire.resume import split_request
from sealift.wire.token import NO_CLOSE, Token, TokenKind

from .rig import Hosts, write_some

MADE_BY = {
    Event.ACCEPT: "PREPARED",
    Event.MAKE_FINAL: "FINAL",
    Event.MAKE_STARTED: "STARTED",
    Event.START_FILLING: "STARTED",
    Event.MAKE_FILLED: "FILLED",
}
TAKEN_BY = {
    Event.TAKE_PREPARED: "PREPARED",
    Event.TAKE_FINAL: "FINAL",
    Event.TAKE_STARTED: "STARTED",
    Event.TAKE_ABORTED: "ABORTED",
    Event.TAKE_RESUME: "RESUME",
    Event.SERVE: "STARTED",
    Event.TAKE_FILLED: "FILLED",
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


def reachable(start: Situation) -> set[Situation]:
    """Every situation that follows from one, tokens being delivered any number of times in any order."""
    todo, seen = [start], {start}
    while todo:
        fresh = set(following(todo.pop())) - seen
        seen |= fresh
        todo += fresh
    return seen


def twice(situations: set[Situation]) -> set[Situation]:
    """Those in which two copies of the guest run."""
    return {each for each in situations if FACTS[each[0]].runs and FACTS[each[1]].runs}


BEGINNING: Situation = (State.RUNNING, State.WAITING, frozenset(), False)


@pytest.mark.attack(
    "tokens", "delivers them any number of times in any order: every course through both tables", gains="nothing"
)
def test_source_and_target_can_never_both_run() -> None:
    """Test all interleavings of both tables, but for what an owner says."""
    seen = reachable(BEGINNING)
    assert not twice(seen)
    ends = {(source, target) for source, target, *_ in seen}
    assert (State.GONE, State.STARTED) in ends
    assert (State.RUNNING, State.ABORTED) in ends


@pytest.mark.attack(
    "tokens",
    "has the owner believe that a target is lost which is not: every course from there",
    gains="a second copy",
)
def test_an_owner_lets_a_source_run_whose_target_is_lost_and_only_a_wrong_one_makes_two() -> None:
    """The owner's word is right if the target does not run and does nothing any more; no handler can know that."""
    seen = reachable(BEGINNING)
    lost = {
        (source, State.ABORTED, tokens | {"RESUME"}, left)
        for source, target, tokens, left in seen
        if not FACTS[target].runs
    }
    for situation in lost:
        after = reachable(situation)
        assert not twice(after)
        if situation[0] is State.FENCED:
            assert any(source is State.RUNNING for source, *_ in after), "the guest can run again"
    wrong = {(source, target, tokens | {"RESUME"}, left) for source, target, tokens, left in seen}
    assert {each[:2] for situation in wrong for each in twice(reachable(situation))} == {
        (State.RUNNING, State.STARTED),
        (State.RUNNING, State.FILLING),
    }


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
    assert migrated & restored == {State.READY, State.STARTED, State.FILLING, State.ABORTED}
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


# --- the owner's word ---------------------------------------------------------------------------------------------


def fenced() -> Hosts:
    hosts = prepared()
    hosts.source.deliver(hosts.target.token(TokenKind.PREPARED))
    hosts.source.token(TokenKind.FINAL)
    return hosts


def resume_token(hosts: Hosts, migration: bytes | None = None, key: bytes | None = None) -> bytes:
    """What an owner makes; here from what it knows of the source's launch."""
    body = Token(TokenKind.RESUME, migration or hosts.source.migration, NO_CLOSE).body()
    return body + mac(resume_key(key or hosts.source_secret.key), body)


def test_a_fenced_source_says_which_migration_left_it_so_and_takes_its_owners_word() -> None:
    hosts = fenced()
    request, found = split_request(hosts.source.resume_request())
    assert found == mac(resume_request_key(hosts.source_secret.key), request.body())
    assert (request.source, request.target) == (hosts.source.facts.measure, hosts.target.facts.measure)
    assert (request.migration, request.instance_id) == (hosts.source.migration, hosts.source_secret.instance_id)
    token = resume_token(hosts)
    assert hosts.source.deliver(token) is TokenKind.RESUME
    assert hosts.source.state is State.RUNNING
    assert hosts.source.deliver(token) is None


@pytest.mark.attack(
    "tokens", "makes the owner's RESUME itself, or takes that of another migration of the same guest", gains="nothing"
)
def test_the_word_of_another_owner_or_about_another_migration_is_none() -> None:
    hosts = fenced()
    old = resume_token(hosts)
    for wrong in (
        resume_token(hosts, migration=bytes(16)),
        resume_token(hosts, key=bytes(32)),
        old[:-1] + bytes([old[-1] ^ 1]),
    ):
        with pytest.raises(SealError, match="RESUME"):
            hosts.source.deliver(wrong)
    assert hosts.source.state is State.FENCED
    hosts.source.deliver(old)
    hosts.receive_anew()
    vmm = hosts.connect()
    vmm.deliver([*vmm.round(), *vmm.finish()])
    hosts.source.deliver(hosts.target.token(TokenKind.PREPARED))
    hosts.source.token(TokenKind.FINAL)
    with pytest.raises(SealError, match="about another migration"):
        hosts.source.deliver(old)
    assert hosts.source.state is State.FENCED


def test_only_a_fenced_source_asks_and_is_let_go_on() -> None:
    hosts = prepared()
    for handler in (hosts.source, hosts.target):
        with pytest.raises(UserError, match="cannot ask the owner"):
            handler.resume_request()
    with pytest.raises(UserError, match="cannot take the owner's RESUME token in state CLOSED"):
        hosts.source.deliver(resume_token(hosts))
    with pytest.raises(SealError, match="a RESUME token is"):
        hosts.target.deliver(resume_token(hosts))
    assert (hosts.source.state, hosts.target.state) == (State.CLOSED, State.PREPARED)
