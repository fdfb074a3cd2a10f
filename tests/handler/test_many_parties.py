"""Attacks by whoever controls several hosts: messages, tokens and receivers of one migration put into another's place.

Whatever is swapped, the guest runs on one host alone, and has there what it had.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from sealift.errors import PeerError, SealError, SealiftError, UserError
from sealift.guest.handler.commit import State
from sealift.wire.handshake import decode_answer, decode_offer
from sealift.wire.token import TokenKind

from .parties import Owner, Party, agree, move, prepare

T = TypeVar("T")
R = TypeVar("R")

PAGES = (0, 10, 11, 40, 90)
"""Some of a guest's pages."""


def launched() -> tuple[Owner, Party]:
    """A guest with something to lose."""
    owner = Owner()
    source = owner.launch()
    for page in PAGES:
        source.guest.write(page, os.urandom(64))
    return owner, source


def same(one: Party, other: Party) -> bool:
    """Whether they hold the same guest."""
    return all(one.guest.content(page) == other.guest.content(page) for page in PAGES)


# --- key exchange ----------------------------------------------------------------------------------------------------


@pytest.mark.attack(
    "key exchange", "puts its own X25519 keys into OFFER and ANSWER, to sit in the middle", gains="denial of service"
)
def test_who_sits_in_the_middle_has_keys_with_neither_side() -> None:
    owner, source = launched()
    target = owner.receiver(source)
    own = X25519PrivateKey.generate().public_key().public_bytes_raw()
    offer = source.offer()
    answer = target.handler.answer(offer.replace(decode_offer(offer).party.public, own))
    with pytest.raises(SealError, match="not authentic"):
        source.handler.confirm(answer.replace(decode_answer(answer).hello.party.public, own))
    with pytest.raises(SealError, match="not authentic"):
        source.handler.confirm(answer)
    assert (source.runs, target.runs) == (True, False)


@pytest.mark.attack(
    "key exchange", "gives the confirmation that is meant for one receiver to another", gains="denial of service"
)
def test_a_confirmation_is_for_one_receiver() -> None:
    owner, source = launched()
    first, second = owner.receiver(source), owner.receiver(source)
    offer = source.offer()
    answer, _ = first.handler.answer(offer), second.handler.answer(offer)
    confirm = source.handler.confirm(answer)
    with pytest.raises(SealError, match="not authentic"):
        second.handler.confirmed(confirm)
    assert second.handler.state is State.ABORTED
    first.handler.confirmed(confirm)


@pytest.mark.attack("key exchange", "has two receivers answer one offer, and both taken", gains="nothing")
def test_one_offer_has_one_answer() -> None:
    owner, source = launched()
    first, second = owner.receiver(source), owner.receiver(source)
    offer = source.offer()
    answers = [first.handler.answer(offer), second.handler.answer(offer)]
    source.handler.confirm(answers[0])
    with pytest.raises(UserError, match="SENDING"):
        source.handler.confirm(answers[1])


@pytest.mark.attack("key exchange", "repeats OFFER, ANSWER and CONFIRM of a migration underway", gains="nothing")
def test_messages_of_a_finished_exchange_are_taken_no_more() -> None:
    owner, source = launched()
    target = owner.receiver(source)
    offer = source.offer()
    answer = target.handler.answer(offer)
    confirm = source.handler.confirm(answer)
    target.handler.confirmed(confirm)
    for again in (
        lambda: target.handler.answer(offer),
        lambda: source.handler.confirm(answer),
        lambda: target.handler.confirmed(confirm),
    ):
        with pytest.raises(UserError):
            again()
    source.finish()
    target.take(source.sealed)
    assert same(source, target)


# --- receivers ---------------------------------------------------------------------------------------------------


@pytest.mark.attack(
    "receivers", "leads a guest that has moved on to a receiver that was approved for its first host", gains="nothing"
)
def test_a_receiver_is_approved_for_the_launch_that_the_guest_is_in() -> None:
    owner, source = launched()
    there, older = owner.receiver(source), owner.receiver(source)
    move(source, there)
    with pytest.raises(SealError, match="owner approved another receiver"):
        there.handler.confirm(older.handler.answer(there.offer()))
    assert there.runs
    assert not older.runs


@pytest.mark.attack("receivers", "has a host that the guest has left pose as its target", gains="nothing")
def test_a_host_that_the_guest_left_cannot_receive_it() -> None:
    owner, source = launched()
    there = owner.receiver(source)
    move(source, there)
    with pytest.raises(UserError, match="GONE"):
        source.handler.answer(there.offer())
    assert (source.runs, there.runs) == (False, True)


@pytest.mark.attack("receivers", "has a host that the guest has left offer it again", gains="nothing")
def test_a_host_that_the_guest_left_has_nothing_to_offer() -> None:
    owner, source = launched()
    there, next_one = owner.receiver(source), owner.receiver(source)
    move(source, there)
    for attempt in (source.offer, source.handler.cancel, source.round):
        with pytest.raises(UserError, match="GONE"):
            attempt()
    with pytest.raises(PeerError):
        agree(there, next_one)


@pytest.mark.attack(
    "receivers", "gives a receiver that aborted its migration another try with the same guest", gains="nothing"
)
def test_a_receiver_that_aborted_is_spent() -> None:
    owner, source = launched()
    target = owner.receiver(source)
    prepare(source, target)
    target.handler.cancel()
    source.cancel()
    with pytest.raises(UserError, match="ABORTED"):
        target.handler.answer(source.offer())


# --- two targets -----------------------------------------------------------------------------------------------------


@pytest.mark.attack("two targets", "prepares two targets and gives both the one FINAL", gains="nothing")
def test_final_is_for_the_target_that_the_source_moved_to_last() -> None:
    owner, source = launched()
    first, second = owner.receiver(source), owner.receiver(source)
    prepared = [prepare(source, first), prepare(source, second)]
    with pytest.raises(SealError, match="another migration"):
        source.handler.deliver(prepared[0])
    source.handler.deliver(prepared[1])
    final = source.handler.token(TokenKind.FINAL)
    with pytest.raises(SealError, match="another migration"):
        first.handler.deliver(final)
    second.handler.deliver(final)
    second.handler.token(TokenKind.STARTED)
    assert [party.runs for party in (source, first, second)] == [False, False, True]
    assert same(source, second)


@pytest.mark.attack(
    "two targets", "takes the ABORTED of one target for the source that FINAL has fenced for another", gains="nothing"
)
def test_an_abort_of_another_target_does_not_give_the_guest_back() -> None:
    owner, source = launched()
    first, second = owner.receiver(source), owner.receiver(source)
    prepare(source, first)
    aborted = first.handler.token(TokenKind.ABORTED)
    source.handler.deliver(prepare(source, second))
    second.handler.deliver(source.handler.token(TokenKind.FINAL))
    with pytest.raises(SealError, match="another migration"):
        source.handler.deliver(aborted)
    second.handler.token(TokenKind.STARTED)
    assert [party.runs for party in (source, first, second)] == [False, False, True]


@pytest.mark.attack("two targets", "sends one migration's records to two targets", gains="denial of service")
def test_records_open_at_one_target_alone() -> None:
    owner, source = launched()
    first, second = owner.receiver(source), owner.receiver(source)
    offer = source.offer()
    answer, _ = first.handler.answer(offer), second.handler.answer(offer)
    first.handler.confirmed(source.handler.confirm(answer))
    source.finish()
    with pytest.raises(UserError, match="ANSWERED"):
        second.take(source.sealed)
    first.take(source.sealed)
    assert first.handler.state is State.PREPARED


# --- tokens ------------------------------------------------------------------------------------------------------


@pytest.mark.attack(
    "tokens", "takes FINAL out of one migration of a guest for a target of the next", gains="denial of service"
)
def test_final_of_a_migration_that_was_taken_back_starts_nobody() -> None:
    owner, source = launched()
    first, second = owner.receiver(source), owner.receiver(source)
    source.handler.deliver(prepare(source, first))
    final = source.handler.token(TokenKind.FINAL)
    source.handler.deliver(first.handler.token(TokenKind.ABORTED))
    source.guest.halted = False
    source.guest.write(10, b"written since")
    prepare(source, second)
    for party in (first, second):
        with pytest.raises(SealError):
            party.handler.deliver(final)
    assert [party.runs for party in (source, first, second)] == [False, False, False]
    source.cancel()
    assert source.runs


@pytest.mark.attack("tokens", "brings tokens in any other order than the one they are made in", gains="nothing")
def test_tokens_are_taken_in_their_order_alone() -> None:
    owner, source = launched()
    target = owner.receiver(source)
    prepared = prepare(source, target)
    with pytest.raises(UserError, match="cannot make the FINAL token in state CLOSED"):
        source.handler.token(TokenKind.FINAL)
    with pytest.raises(UserError, match="cannot start the guest in state PREPARED"):
        target.handler.token(TokenKind.STARTED)
    source.handler.deliver(prepared)
    final = source.handler.token(TokenKind.FINAL)
    assert source.handler.deliver(prepared) is None
    target.handler.deliver(final)
    started = target.handler.token(TokenKind.STARTED)
    with pytest.raises(SealError):
        target.handler.deliver(started)
    source.handler.deliver(started)
    assert (source.runs, target.runs) == (False, True)


@pytest.mark.attack("tokens", "plays STARTED of a guest's first hop to the source of its second", gains="nothing")
def test_the_tokens_of_one_hop_mean_nothing_on_the_next() -> None:
    owner, source = launched()
    second = owner.receiver(source)
    move(source, second)
    third = owner.receiver(second)
    old = [second.handler.token(kind) for kind in (TokenKind.PREPARED, TokenKind.STARTED)]
    second.handler.deliver(prepare(second, third))
    final = second.handler.token(TokenKind.FINAL)
    for token in old:
        with pytest.raises(SealError):
            second.handler.deliver(token)
    assert second.handler.state is State.FENCED
    third.handler.deliver(final)
    third.handler.token(TokenKind.STARTED)
    assert [party.runs for party in (source, second, third)] == [False, False, True]


# --- whole migrations ------------------------------------------------------------------------------------------------


@pytest.mark.attack(
    "whole migrations",
    "plays all of an earlier migration, tokens included, to the receiver of the next",
    gains="nothing",
)
def test_an_earlier_migration_starts_no_later_receiver() -> None:
    owner, source = launched()
    there = owner.receiver(source)
    agree(source, there)
    source.finish()
    there.take(source.sealed)
    source.handler.deliver(there.handler.token(TokenKind.PREPARED))
    final = source.handler.token(TokenKind.FINAL)
    there.handler.deliver(final)
    source.handler.deliver(there.handler.token(TokenKind.STARTED))
    later = owner.receiver(source)
    with pytest.raises(UserError):
        later.take(source.sealed)
    with pytest.raises(SealError):
        later.handler.deliver(final)
    assert [party.runs for party in (source, there, later)] == [False, True, False]


# --- everything at once ----------------------------------------------------------------------------------------------


class Anybody(RuleBasedStateMachine):
    """Whoever has every VMM: keeps every message ever made, and gives any of them to anybody at any time."""

    parties: list[Party]
    owner: Owner
    written: int
    truth: dict[int, bytes]

    @initialize()
    def begin(self) -> None:
        """A guest on its first host."""
        self.owner = Owner()
        self.parties = [self.owner.launch()]
        self.offers: list[bytes] = []
        self.answers: list[bytes] = []
        self.confirms: list[bytes] = []
        self.tokens: list[bytes] = []
        self.streams: list[list[bytes]] = []
        self.written, self.truth = 0, {}

    @rule(where=st.integers(0, 9))
    def the_owner_approves_a_receiver(self, where: int) -> None:
        """For the guest as it is, or was, on some host."""
        self.parties.append(self.owner.receiver(self._party(where)))

    @rule(page=st.sampled_from(PAGES))
    def the_guest_writes(self, page: int) -> None:
        """Wherever it runs."""
        for party in self.parties:
            if party.runs:
                self.written += 1
                party.guest.halted = False
                party.guest.write(page, f"update {self.written}".encode())
                self.truth[page] = party.guest.content(page)

    @rule(who=st.integers(0, 9))
    def offer(self, who: int) -> None:
        """An attacker begins a migration."""
        with contextlib.suppress(SealiftError):
            self.offers.append(self._party(who).offer())

    @rule(who=st.integers(0, 9), which=st.integers(0, 9))
    def answer(self, who: int, which: int) -> None:
        """Any offer to any receiver."""
        self._try(self.offers, which, self._party(who).handler.answer, self.answers)

    @rule(who=st.integers(0, 9), which=st.integers(0, 9))
    def confirm(self, who: int, which: int) -> None:
        """Any answer to any source."""
        self._try(self.answers, which, self._party(who).handler.confirm, self.confirms)

    @rule(who=st.integers(0, 9), which=st.integers(0, 9))
    def take_the_confirmation(self, who: int, which: int) -> None:
        """Any confirmation to any receiver."""
        self._try(self.confirms, which, self._party(who).handler.confirmed)

    @rule(steps=st.sampled_from([9, 8, 7, 7, 7, 6, 6, 6, 5, 4, 3, 2, 1]), fresh=st.integers(0, 3))
    def migrate_honestly(self, steps: int, fresh: int) -> None:
        """As far as so many steps, most often to a fresh receiver."""
        for source in [party for party in self.parties if party.runs]:
            if fresh:
                self.parties.append(self.owner.receiver(source))
            with contextlib.suppress(SealiftError):
                for _ in zip(range(steps), self._steps(source, self.parties[-1]), strict=False):
                    """On to the next step."""

    @rule(who=st.integers(0, 9))
    def seal_a_round(self, who: int) -> None:
        """A migration goes on."""
        with contextlib.suppress(SealiftError):
            self._party(who).round()

    @rule(who=st.integers(0, 9))
    def stop_and_close(self, who: int) -> None:
        """It comes to its end."""
        party = self._party(who)
        if party.handler.state is not State.SENDING:
            return  # that would stop a guest for nothing
        with contextlib.suppress(SealiftError):
            party.finish()
            self.streams.append(list(party.sealed))

    @rule(who=st.integers(0, 9), which=st.integers(0, 9), skip=st.integers(0, 20))
    def open_a_stream(self, who: int, which: int, skip: int) -> None:
        """Any stream to any receiver, whole or but for one record."""

        def open_all(stream: list[bytes]) -> None:
            self._party(who).take([record for place, record in enumerate(stream) if place != skip - 1])

        self._try(self.streams, which, open_all)

    @rule(who=st.integers(0, 9), kind=st.sampled_from(TokenKind))
    def fetch_a_token(self, who: int, kind: TokenKind) -> None:
        """Any token of anybody."""
        with contextlib.suppress(SealiftError):
            self.tokens.append(self._party(who).handler.token(kind))

    @rule(who=st.integers(0, 9), which=st.integers(0, 19))
    def deliver_a_token(self, who: int, which: int) -> None:
        """Any token to anybody."""
        self._try(self.tokens, which, self._party(who).handler.deliver)

    @rule(who=st.integers(0, 9))
    def cancel(self, who: int) -> None:
        """An attacker gives a migration up."""
        with contextlib.suppress(SealiftError):
            self._party(who).handler.cancel()

    @rule()
    def press_on(self) -> None:
        """Everybody is given every token, and asked for whatever leads on."""
        for _ in range(3):
            for party in self.parties:
                for kind in (TokenKind.PREPARED, TokenKind.FINAL, TokenKind.STARTED):
                    with contextlib.suppress(SealiftError):
                        self.tokens.append(party.handler.token(kind))
            self.tokens = list(dict.fromkeys(self.tokens))
            for party, token in itertools.product(self.parties, self.tokens):
                with contextlib.suppress(SealiftError):
                    party.handler.deliver(token)

    @invariant()
    def the_guest_runs_on_one_host_at_most_and_has_what_it_wrote(self) -> None:
        """What all of it must not change."""
        running = [party for party in self.parties if party.runs]
        assert len(running) <= 1, [party.name for party in running]
        for party in running:
            for page, content in self.truth.items():
                assert party.guest.content(page) == content, f"{party.name} has an older page {page}"

    def _steps(self, source: Party, target: Party) -> Iterator[str]:
        self.offers.append(source.offer())
        self.answers.append(target.handler.answer(self.offers[-1]))
        yield "ANSWER"
        self.confirms.append(source.handler.confirm(self.answers[-1]))
        yield "CONFIRM"
        target.handler.confirmed(self.confirms[-1])
        source.round()
        yield "a round"
        source.finish()
        self.streams.append(list(source.sealed))
        yield "the close record"
        target.take(source.sealed)
        hand = (
            (target, source, TokenKind.PREPARED),
            (source, target, TokenKind.FINAL),
            (target, source, TokenKind.STARTED),
        )
        for giver, taker, kind in hand:
            self.tokens.append(giver.handler.token(kind))
            yield kind.name
            taker.handler.deliver(self.tokens[-1])
        yield "the end"

    def _party(self, number: int) -> Party:
        return self.parties[number % len(self.parties)]

    @staticmethod
    def _try(pool: list[T], which: int, take: Callable[[T], R], made: list[R] | None = None) -> None:
        """Give somebody one of the messages; keep what comes of it."""
        if not pool:
            return
        with contextlib.suppress(SealiftError):
            answer = take(pool[-1 - which % len(pool)])
            if made is not None:
                made.append(answer)


@pytest.mark.attack(
    "everything at once",
    "has every VMM, keeps every message, and gives any to anybody at any time, in hundreds of random courses",
    gains="denial of service",
)
def test_whatever_anybody_brings_anywhere_one_guest_runs_and_is_whole() -> None:
    calm = settings(max_examples=150, stateful_step_count=40, deadline=None)
    run_state_machine_as_test(Anybody, settings=calm)
