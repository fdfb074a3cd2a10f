"""A migration of the page while the guest runs, as a transition system.

Actors: two vCPUs, a device, and one or more migration threads. A thread is a tuple of `Step`: it takes them in
order, each one atomic, and starts over. A *round* is one pass of the thread that reads the logs. Between two
rounds the vCPUs may be stopped, after which exactly one more round is made. The migration is over when no
thread is at work and no set holds the page. Then the target must hold what the guest can still see.

One page stands for all. No step of one page looks at another, and what the others do to this one (a thread
starts although this page is in no set) is allowed at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import cache
from typing import NamedTuple, TypeAlias

from model.explorer import Move
from model.page import Flips, Guest, Page, device_moves, flip, guest_moves, merged, pages_at_start


class Step(Enum):
    """What a migration thread does in one atomic step."""

    GET = "get the dirty logs"
    CLEAR = "clear what was got from the logs"
    FLUSH_0 = "flush vCPU 0's TLB"
    FLUSH_1 = "flush vCPU 1's TLB"
    MERGE = "OR what was got into the sets"
    TAKE_PRIVATE = "take the page from the unsent set"
    READ_PRIVATE = "read and seal the private plane"
    SEND_PRIVATE = "send the sealed record"
    CLOSE_EPOCH = "close the epoch"
    TAKE_SHARED = "take the page from the shared-dirty set"
    READ_SHARED = "read the shared plane"
    SEND_SHARED = "send the shared page"
    # Steps of other designs.
    READ_UNTAKEN = "read and seal the private plane, the page still in the unsent set"
    FORGET_PRIVATE = "remove what was read from the unsent set"
    READ_IF_PRIVATE = "read and seal the private plane, unless the page is shared"
    SYNC_BITMAP = "sync the page encryption bitmap"
    READ_BY_BITMAP = "read the page as the kind that the bitmap says"

    __hash__ = object.__hash__  # Enum hashes the name, in Python, at every look-up


S = Step
HARVEST = (S.GET, S.CLEAR, S.FLUSH_0, S.FLUSH_1, S.MERGE)
SEAL = (S.TAKE_PRIVATE, S.READ_PRIVATE, S.SEND_PRIVATE, S.CLOSE_EPOCH)
COPY = (S.TAKE_SHARED, S.READ_SHARED, S.SEND_SHARED)

Thread: TypeAlias = tuple[Step, ...]


class Phase(Enum):
    """Where the migration is."""

    RUNNING = auto()
    STOPPED = auto()
    LAST_ROUND = auto()
    OVER = auto()

    __hash__ = object.__hash__


class Aspect(Enum):
    """What one exploration is about; the rest is left out of the state.

    The bookkeeping of one plane never looks at that of the other, nor secrecy at either, so each can be explored
    with all of the guest, the logs and the flips, but without the others.
    """

    PRIVATE = auto()
    SHARED = auto()
    SECRECY = auto()


EVERYTHING = frozenset(Aspect)


@dataclass(frozen=True)
class Design:
    """One way to do it; the defaults are Sealift's.

    Attributes:
        threads: what runs at once; the first one gets the logs.
        flips: what the platform does at a flip.
        exclusive: a flip waits while a harvest is between ``GET`` and the last of its effects.
        device_writes_first: a device writes, then marks.
        sends_sealed_set: which pages count as written through C=1 (`Page.sealed`) travels with the final state.
        guest: how the guest changes a page's kind.
    """

    threads: tuple[Thread, ...] = (HARVEST, SEAL, COPY)
    flips: Flips = field(default_factory=Flips)
    exclusive: bool = True
    device_writes_first: bool = True
    sends_sealed_set: bool = True
    guest: Guest = Guest.LINUX


@dataclass(frozen=True)
class Scope:
    """Who takes part, and what is checked."""

    vcpus: int = 2
    device: bool = False
    aspects: frozenset[Aspect] = EVERYTHING


class State(NamedTuple):
    """The page, each thread's place in its steps, and the phase.

    `page` is a number that the `Migration` gave: numbers hash and compare much faster than 24 fields.
    """

    page: int
    places: tuple[int, ...]
    phase: Phase


def _clear(page: Page) -> Page:
    return page._replace(log_c1=page.log_c1 and not page.got_c1, log_c0=page.log_c0 and not page.got_c0)


def _flush(vcpu: int, page: Page) -> Page:
    return page._replace(tlb=frozenset(entry for entry in page.tlb if entry[0] != vcpu))


def _seal(page: Page) -> Page:
    return page._replace(private_record=True if page.private_taken else None, private_taken=False)


def _seal_if_private(page: Page) -> Page:
    return page._replace(private_taken=False) if page.is_shared else _seal(page)


def _copy(page: Page) -> Page:
    """The VMM reads a page it took, unless a hypercall has told it that the page is private by now."""
    return page._replace(shared_record=True if page.shared_taken and page.is_shared else None, shared_taken=False)


def _read_by_bitmap(page: Page) -> Page:
    taken = page.private_taken or page.shared_taken
    shared = page.bitmap_shared
    return _copy(_seal(page._replace(private_taken=taken and not shared, shared_taken=taken and shared)))


def _deliver_private(page: Page) -> Page:
    """The target opens a record, but refuses a page that is not newer than the one it has."""
    if page.private_record is None:
        return page
    delivered = page.private_on_target if page.in_epoch else page.private_record
    return page._replace(private_on_target=delivered, in_epoch=True, private_record=None)


def _deliver_shared(page: Page) -> Page:
    if page.shared_record is None:
        return page
    return page._replace(shared_on_target=page.shared_record, shared_record=None)


EFFECTS: Mapping[Step, Callable[[Page, Flips], Page]] = {
    S.GET: lambda page, _: page._replace(got_c1=page.log_c1, got_c0=page.log_c0),
    S.CLEAR: lambda page, _: _clear(page),
    S.FLUSH_0: lambda page, _: _flush(0, page),
    S.FLUSH_1: lambda page, _: _flush(1, page),
    S.MERGE: merged,
    S.TAKE_PRIVATE: lambda page, _: page._replace(private_taken=page.unsent, unsent=False),
    S.READ_PRIVATE: lambda page, _: _seal(page),
    S.SEND_PRIVATE: lambda page, _: _deliver_private(page),
    S.CLOSE_EPOCH: lambda page, _: page._replace(in_epoch=False),
    S.TAKE_SHARED: lambda page, _: page._replace(shared_taken=page.shared_dirty, shared_dirty=False),
    S.READ_SHARED: lambda page, _: _copy(page),
    S.SEND_SHARED: lambda page, _: _deliver_shared(page),
    S.READ_UNTAKEN: lambda page, _: page._replace(private_record=True if page.unsent else None),
    S.FORGET_PRIVATE: lambda page, _: page._replace(unsent=page.unsent and page.private_record is None),
    S.READ_IF_PRIVATE: lambda page, _: _seal_if_private(page),
    S.SYNC_BITMAP: lambda page, _: page._replace(bitmap_shared=page.is_shared),
    S.READ_BY_BITMAP: lambda page, _: _read_by_bitmap(page),
}

# The steps through which a harvest still owes something to the logs, the TLBs or the sets.
_HARVESTING = frozenset({S.CLEAR, S.FLUSH_0, S.FLUSH_1, S.MERGE})

# What each aspect alone looks at, at rest.
_FIELDS_OF: Mapping[Aspect, Mapping[str, bool | None]] = {
    Aspect.PRIVATE: {
        "unsent": False,
        "private_taken": False,
        "private_record": None,
        "in_epoch": False,
        "private_on_target": False,
    },
    Aspect.SHARED: {
        "shared_dirty": False,
        "shared_taken": False,
        "shared_record": None,
        "shared_on_target": False,
    },
    Aspect.SECRECY: {"secret": False, "hidden_secret": False, "leaked": False},
}


class Migration:
    """A `Design` within a `Scope`, as something that `model.explorer.explore` can explore."""

    def __init__(self, design: Design, scope: Scope) -> None:
        self._design = design
        self._scope = scope
        harvest = design.threads[0]
        self._harvest_end = max(place for place, step in enumerate(harvest) if step in _HARVESTING)
        self._locked = range(harvest.index(S.GET) + 1, self._harvest_end + 1) if design.exclusive else range(0)
        self._left_out = {
            name: rest for aspect in EVERYTHING - scope.aspects for name, rest in _FIELDS_OF[aspect].items()
        }
        self._threads = tuple(thread for thread in design.threads if self._has_work(thread))
        self._step_names = tuple(tuple(step.value for step in thread) for thread in self._threads)
        self._pages: list[Page] = []
        self._numbers: dict[Page, int] = {}
        # Far fewer pages than states exist, and what happens to a page does not depend on the rest.
        self._after = cache(self._after_step)
        self._page_moves = cache(self._moves_of_page)

    def initial(self) -> Iterator[Move[State]]:
        """The kinds of page that a migration can find."""
        for name, page in pages_at_start(self._design.guest):
            yield f"{name}; the migration begins", State(self._number(page), (0,) * len(self._threads), Phase.RUNNING)

    def moves(self, state: State) -> Iterator[Move[State]]:
        """Every step of the guest, the device, the migration's threads and the VMM."""
        number, places, phase = state
        page = self._pages[number]
        if phase is Phase.OVER:
            return
        if phase is Phase.RUNNING:
            free, flipped = self._page_moves(number)
            for name, moved in free if places[0] in self._locked else (*free, flipped):
                yield name, State(moved, places, phase)
            if places[0] == 0 and not page.device_busy:
                yield "the vCPUs stop", State(number, places, Phase.STOPPED)
        for index, place in enumerate(places):
            if index or place or phase in (Phase.RUNNING, Phase.STOPPED):
                yield self._thread_move(state, index)
        if phase is Phase.LAST_ROUND and not any(places) and not page.unsent and not page.shared_dirty:
            yield "the final state is sent; the migration is complete", State(number, places, Phase.OVER)

    def fault(self, state: State) -> str | None:
        """A secret in the clear, at any time; what the target lacks, at the end."""
        page = self._pages[state.page]
        if page.leaked:
            return "LEAKED: the host reads in the clear what the guest wrote through C=1"
        if state.phase is not Phase.OVER:
            return None
        sees_private = not page.is_shared or self._design.guest is Guest.LINUX
        if Aspect.PRIVATE in self._scope.aspects and sees_private and not page.private_on_target:
            return "LOST: the target's private plane is not what the guest would see"
        if Aspect.SHARED in self._scope.aspects and page.is_shared and not page.shared_on_target:
            return "LOST: the target's shared plane is not what the guest would see"
        if not page.sealed and not page.is_shared and not self._design.sends_sealed_set:
            return "LOST: the target does not know that all of the page was written through C=0"
        return None

    def finished(self, state: State) -> bool:
        """Whether the migration is complete."""
        return state.phase is Phase.OVER

    def _number(self, page: Page) -> int:
        """The number of `page`, without what this scope leaves out."""
        page = page._replace(**self._left_out)  # type: ignore[arg-type]  # names and types are Page's own
        number = self._numbers.setdefault(page, len(self._pages))
        if number == len(self._pages):
            self._pages.append(page)
        return number

    def _has_work(self, thread: Thread) -> bool:
        """Whether a thread does anything that this scope looks at."""
        idle: set[Step] = set()
        if Aspect.PRIVATE not in self._scope.aspects:
            idle |= set(SEAL)
        if Aspect.SHARED not in self._scope.aspects:
            idle |= set(COPY)
        return not idle.issuperset(thread)

    def _moves_of_page(self, number: int) -> tuple[tuple[Move[int], ...], Move[int]]:
        """What the guest and the device can do to a page, and the flip, which may have to wait."""
        page, design = self._pages[number], self._design
        free = [*guest_moves(page, self._scope.vcpus, design.guest)]
        if self._scope.device:
            free += device_moves(page, write_first=design.device_writes_first)
        flip_name, flipped = flip(page, design.flips, design.guest)
        return tuple((name, self._number(moved)) for name, moved in free), (flip_name, self._number(flipped))

    def _after_step(self, number: int, thread: int, place: int) -> int:
        """The page after one step of a migration thread."""
        page = EFFECTS[self._threads[thread][place]](self._pages[number], self._design.flips)
        if thread == 0 and place == self._harvest_end:
            page = page._replace(got_c1=False, got_c0=False)
        return self._number(page)

    def _thread_move(self, state: State, thread: int) -> Move[State]:
        number, places, phase = state
        place = places[thread]
        names = self._step_names[thread]
        if thread == 0 and place == 0 and phase is Phase.STOPPED:
            phase = Phase.LAST_ROUND
        moved = (*places[:thread], (place + 1) % len(names), *places[thread + 1 :])
        return names[place], State(self._after(number, thread, place), moved, phase)
