"""Any history of writes, flips, host access, rounds, pulls and cancellations: the target gets what the source had.

The guest is real code on a real engine, in real memory; handlers seal and open real records.
"""

from __future__ import annotations

import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from sealift.address import PAGE_SIZE
from sealift.guest.handler.commit import State
from sealift.silicon.engines.interface import Vcpu
from usable_kvm import why_not

from .board import EngineKind, timeless
from .conftest import KVM, UNICORN
from .sides import CHANNELS, MAILBOX, VCPUS, WINDOWS, Migration, Side
from .windows import content

vcpus = st.integers(0, VCPUS - 1)
pages = st.sampled_from(list(WINDOWS))
words = st.integers(0, 511).map(lambda word: word * 8)


class Moving(RuleBasedStateMachine):
    """A guest that is moved, in the end."""

    kind: EngineKind = UNICORN

    @initialize(steady=st.booleans())
    def begin(self, *, steady: bool) -> None:
        """Every word the guest writes is another number, and through the C-bit it is a secret.

        A steady migration has all of the guest behind it after one round, and is never given up: what any later step
        forgets to mark is lost.
        """
        self.migration = Migration(self.kind)
        self.source: Side = self.migration.source
        self.numbers = itertools.count(0x5EC2E7_0000_0001, 0x1_0000_0001)
        self.secrets: list[int] = []
        self.in_round = False
        self.steady = steady
        if steady:
            for page in WINDOWS:
                self.guest_writes_its_own(vcpu=0, page=page, offset=0)
            self.migration.connect()
            self.source.handler.begin_epoch()
            self.migration.finish_round()
            self.migration.send_shared()

    @property
    def sending(self) -> bool:
        """Whether keys are exchanged."""
        return self.source.handler.state is State.SENDING

    # --- the guest and its devices ----------------------------------------------------------------------------

    @rule(vcpu=vcpus, page=pages, offset=words)
    def guest_writes_its_own(self, vcpu: int, page: int, offset: int) -> None:
        """Through the C-bit, whatever the page's state."""
        self.secrets.append(next(self.numbers))
        self.source.store(vcpu, page + offset, self.secrets[-1])

    @rule(vcpu=vcpus, page=pages, offset=words)
    def guest_writes_for_others(self, vcpu: int, page: int, offset: int) -> None:
        """Without it."""
        self.source.store(vcpu, WINDOWS[page] + offset, next(self.numbers))

    @rule(vcpu=vcpus, page=pages, count=st.integers(1, 2), kind=st.booleans())
    def guest_flips(self, vcpu: int, page: int, count: int, *, kind: bool) -> None:
        """One or two pages, some of them perhaps in that state already."""
        self.source.declare(vcpu, page, count, encrypted=kind)

    @rule(page=pages, offset=words)
    def device_writes(self, page: int, offset: int) -> None:
        """A device of the VMM, where the page is shared: write first, mark second."""
        number = page // PAGE_SIZE
        if number in self.source.memory.states:
            self.migration.device_writes(number, offset // 8, next(self.numbers))

    @rule(page=pages, offset=words)
    def host_writes_dram(self, page: int, offset: int) -> None:
        """Under the guest's feet."""
        number = page // PAGE_SIZE
        self.source.memory.shared.words[number, offset // 8] = next(self.numbers)
        self.source.memory.write_host_view(number, 1)

    @rule()
    def host_looks(self) -> None:
        """At all of DRAM."""
        self.source.memory.read_host_view(0, self.source.memory.layout.pages)

    # --- the migration ------------------------------------------------------------------------------------------

    @precondition(lambda self: not self.steady)
    @rule()
    def connects(self) -> None:
        """To a new receiver; a session that was under way ends."""
        self.migration.connect()
        self.in_round = False

    @precondition(lambda self: self.sending and not self.in_round)
    @rule()
    def round_begins(self) -> None:
        """Pages are chosen now and sealed later."""
        self.source.handler.begin_epoch()
        self.in_round = True

    @precondition(lambda self: self.sending and self.in_round)
    @rule(channel=st.integers(0, CHANNELS - 1), count=st.integers(1, 8))
    def record_travels(self, channel: int, count: int) -> None:
        """Some pages of the round."""
        self.migration.pull(channel, count)

    @precondition(lambda self: self.sending and self.in_round)
    @rule()
    def round_ends(self) -> None:
        """All the rest of it."""
        self.migration.finish_round()
        self.in_round = False

    @precondition(lambda self: self.sending)
    @rule()
    def shared_pages_travel(self) -> None:
        """The VMM reads its dirty log."""
        self.migration.send_shared()

    @precondition(lambda self: self.sending and not self.steady)
    @rule(stop=st.booleans())
    def is_cancelled(self, *, stop: bool) -> None:
        """At once, or as late as possible: the target is PREPARED, and the guest runs on here."""
        if stop:
            self._send_end()
        self.migration.cancel()
        self.in_round = False

    # --- the end -----------------------------------------------------------------------------------------------

    def _send_end(self) -> None:
        if self.in_round:
            self.migration.finish_round()
        self.migration.stop()
        self.migration.close_stream()

    def teardown(self) -> None:
        """Move the guest, whatever came before, and compare."""
        if not hasattr(self, "migration"):
            return
        try:
            if not self.sending:
                self.connects()
            self._send_end()
            source, target = self.source, self.migration.hand_over()
            assert_same(source, target)
            assert_hidden(self.secrets, self.migration)
            (page, *_) = WINDOWS
            target.store(0, page, 0x60)
            assert target.board.private(page) == 0x60
        finally:
            self.migration.close()


def assert_same(source: Side, target: Side) -> None:
    """Both planes, as far as each is the guest's, page states, and every register of every vCPU."""
    assert target.memory.save_states() == source.memory.save_states()
    for page in range(source.memory.layout.pages):
        if page not in MAILBOX:
            assert content(target.memory.private, page) == content(source.memory.private, page), f"private {page:#x}"
        if page in source.memory.states:
            assert content(target.memory.shared, page) == content(source.memory.shared, page), f"shared {page:#x}"
    for index in range(VCPUS):
        assert standing_still(target.board.vcpus[index]) == standing_still(source.board.vcpus[index])


def assert_hidden(secrets: list[int], migration: Migration) -> None:
    """What the guest wrote through the C-bit is in no record and on no shared plane."""
    assert migration.target is not None
    seen = [*migration.carried, migration.source.memory.shared.data, migration.target.memory.shared.data]
    everything = b"".join(bytes(part) for part in seen)
    for secret in secrets:
        assert secret.to_bytes(8, "little") not in everything


def standing_still(vcpu: Vcpu) -> object:
    """Its state but for clocks."""
    return timeless(vcpu.save())


class MovingOnKvm(Moving):
    """The same on hardware."""

    kind = KVM


TestMoving = Moving.TestCase
TestMoving.settings = settings(max_examples=100, stateful_step_count=20, deadline=None)
if not why_not():
    TestMovingOnKvm = pytest.mark.kvm(MovingOnKvm.TestCase)
    TestMovingOnKvm.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
