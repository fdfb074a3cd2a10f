"""The commit table: which step is allowed in which state, where it leads, and where the guest may run.

::

    source  RUNNING ─ OFFERED ─ SENDING ─ STOPPED ─ CLOSED ─ CLEARED ─ FENCED ─ GONE
               ▲          cancel, or ABORTED before FINAL │              │
               └──────────────────────────────────────────┘◄── ABORTED ──┘ or the owner's RESUME
            FENCED ─ SERVING ─ GONE: post-copy, the guest runs at the target, which still misses pages of it
            RUNNING ─ YIELDED ─ RUNNING: the secure processor sends the guest, or did until that was cancelled
    target  WAITING ─ ANSWERED ─ RECEIVING ─ PREPARED ─ READY ─ STARTED (then a source, for its next hop)
               └───────────┴──────────┴──────────┴────────┴──► ABORTED
            READY ─ FILLING ─ STARTED: post-copy, the guest runs here while its missing pages come
    snapshot RUNNING ─ SAVING ─ HELD ─ SAVED ─ RUNNING
    restore  BLANK ─ RESTORING ─ RESTORED ─ READY ─ STARTED

The design's SENDING, STOPPED, FENCED and GONE are told apart further: OFFERED has no confirmed keys yet, CLOSED has
made its close record, CLEARED holds the target's PREPARED. The guest may run in RUNNING, YIELDED, OFFERED, SENDING and
SAVING on the source and in STARTED and FILLING on the target. Never two: the source leaves the states that may run
before it makes FINAL, the target enters its own after it took FINAL, and what leads the source out of FENCED back to
RUNNING is a token that a target makes only on entering a state from which there is no way to those. Or it is the
owner's RESUME, for a target that is lost: whether that one runs is then for the owner to know, and no handler can.

Post-copy has a point of no return: from FILLING on each side holds a part of the guest's memory, and nothing leads
back to RUNNING. Only the target's FILLED, which it makes once every page is there, lets the source go.

Should the connections be lost in SENDING or SERVING, source and target may agree on a new leg (NEW_LEG, ANSWER_LEG)
and go on. WAITING is a receiver before it serves: its own start-up code may run, which holds nothing of the guest to
come.

A snapshot gives nobody the right to run but whom the owner lets restore it, so its source just runs on. BLANK is a
receiver that the owner released for one snapshot: it waits for that instead of an offer, and no step leads from one
way to the other. It needs no FINAL, which would be the source's: the snapshot's own end stands in its place.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from sealift.errors import UserError


class Role(enum.Enum):
    """Which side of a migration a handler was launched as; the platform's state and the owner's secret decide."""

    SOURCE = enum.auto()
    TARGET = enum.auto()
    RESTORE = enum.auto()


class State(enum.Enum):
    """Where a handler is."""

    RUNNING = enum.auto()
    YIELDED = enum.auto()
    OFFERED = enum.auto()
    SENDING = enum.auto()
    STOPPED = enum.auto()
    CLOSED = enum.auto()
    CLEARED = enum.auto()
    FENCED = enum.auto()
    SERVING = enum.auto()
    GONE = enum.auto()
    SAVING = enum.auto()
    HELD = enum.auto()
    SAVED = enum.auto()
    WAITING = enum.auto()
    ANSWERED = enum.auto()
    RECEIVING = enum.auto()
    PREPARED = enum.auto()
    BLANK = enum.auto()
    RESTORING = enum.auto()
    RESTORED = enum.auto()
    READY = enum.auto()
    FILLING = enum.auto()
    STARTED = enum.auto()
    ABORTED = enum.auto()


class Event(enum.Enum):
    """What can be asked of a handler, or happen to it; the value completes "cannot …"."""

    OFFER = "offer a migration"
    YIELD = "leave the guest to its secure processor"
    RECLAIM = "take the guest back from its secure processor"
    CONFIRM = "confirm the exchange"
    NEW_LEG = "go on after a lost connection"
    ROUND = "begin or end a round"
    SEND = "seal pages of a round"
    STOP = "stop the guest for the last round"
    SEAL_MISSING = "seal pages that were demanded"
    LEAVE_MISSING = "leave pages for after the switch"
    SEAL_STATE = "seal the machine state"
    CLOSE = "close the stream"
    TAKE_PREPARED = "take a PREPARED token"
    MAKE_FINAL = "make the FINAL token"
    TAKE_STARTED = "take a STARTED token"
    SERVE = "take a STARTED token of a target that misses pages"
    TAKE_FILLED = "take a FILLED token"
    ASK_OWNER = "ask the owner to let the guest run here"
    TAKE_RESUME = "take the owner's RESUME token"
    SAVE = "begin a snapshot"
    END_SNAPSHOT = "end the snapshot"
    ANSWER = "answer an offer"
    TAKE_CONFIRM = "take the source's confirmation"
    ANSWER_LEG = "let the source go on after a lost connection"
    OPEN = "open a record"
    ACCEPT = "accept the stream"
    TAKE_FINAL = "take a FINAL token"
    RESTORE = "take a snapshot's header"
    TAKE_SNAPSHOT = "take a snapshot's end"
    MAKE_STARTED = "start the guest"
    START_FILLING = "start the guest before all of it is here"
    FILL = "open a record of missing pages"
    MAKE_FILLED = "say that all of the guest is here"
    TAKE_ABORTED = "take an ABORTED token"
    CANCEL = "cancel the migration"


@dataclass(frozen=True, slots=True)
class StateFacts:
    """What a state means: may the guest's vCPUs enter guest mode, and what leads on from here."""

    runs: bool
    way_out: str


FACTS: Mapping[State, StateFacts] = MappingProxyType(
    {
        State.RUNNING: StateFacts(runs=True, way_out="offer a migration first"),
        State.YIELDED: StateFacts(runs=True, way_out="cancel what the secure processor sends (SEND_CANCEL)"),
        State.OFFERED: StateFacts(runs=True, way_out="confirm the target's answer, or cancel"),
        State.SENDING: StateFacts(runs=True, way_out="stop the guest for the last round, or cancel"),
        State.STOPPED: StateFacts(runs=False, way_out="finish the last round and close the stream, or cancel"),
        State.CLOSED: StateFacts(runs=False, way_out="deliver the target's PREPARED token, or cancel"),
        State.CLEARED: StateFacts(runs=False, way_out="make the FINAL token, or cancel"),
        State.FENCED: StateFacts(runs=False, way_out="deliver the target's STARTED or ABORTED token, or the owner's"),
        State.SERVING: StateFacts(runs=False, way_out="seal what the target misses, and deliver its FILLED token"),
        State.GONE: StateFacts(runs=False, way_out="the guest runs on the target; end this one"),
        State.SAVING: StateFacts(runs=True, way_out="stop the guest for the snapshot's last round, or cancel"),
        State.HELD: StateFacts(runs=False, way_out="finish the snapshot's last round and close it, or cancel"),
        State.SAVED: StateFacts(runs=False, way_out="end the snapshot, or cancel"),
        State.WAITING: StateFacts(runs=False, way_out="answer the source's offer"),
        State.ANSWERED: StateFacts(runs=False, way_out="deliver the source's confirmation, or cancel"),
        State.RECEIVING: StateFacts(runs=False, way_out="open the source's records, or cancel"),
        State.PREPARED: StateFacts(runs=False, way_out="deliver the source's FINAL token, or cancel"),
        State.BLANK: StateFacts(runs=False, way_out="deliver the header of the snapshot it was released for"),
        State.RESTORING: StateFacts(runs=False, way_out="open the snapshot's records, or cancel"),
        State.RESTORED: StateFacts(runs=False, way_out="deliver the snapshot's end, or cancel"),
        State.READY: StateFacts(runs=False, way_out="make the STARTED token, or cancel"),
        State.FILLING: StateFacts(runs=True, way_out="open the records of all missing pages"),
        State.STARTED: StateFacts(runs=True, way_out="offer a migration to yet another host first"),
        State.ABORTED: StateFacts(runs=False, way_out="launch a new receiver; this one is spent"),
    }
)

_BEFORE_FENCE = (State.OFFERED, State.SENDING, State.STOPPED, State.CLOSED, State.CLEARED)
_SNAPSHOT = (State.SAVING, State.HELD, State.SAVED)
_BEFORE_START = (
    *(State.WAITING, State.ANSWERED, State.RECEIVING, State.PREPARED),
    *(State.BLANK, State.RESTORING, State.RESTORED),
    State.READY,
)
_AT_HOME = (State.RUNNING, State.STARTED)

STEPS: Mapping[Event, Mapping[State, State]] = MappingProxyType(
    {
        Event.YIELD: dict.fromkeys(_AT_HOME, State.YIELDED),
        Event.RECLAIM: {State.YIELDED: State.RUNNING},
        Event.OFFER: dict.fromkeys((*_AT_HOME, *_BEFORE_FENCE), State.OFFERED),
        Event.CONFIRM: {State.OFFERED: State.SENDING},
        Event.NEW_LEG: {State.SENDING: State.SENDING, State.SERVING: State.SERVING},
        Event.ROUND: {state: state for state in (State.SENDING, State.STOPPED, State.SAVING, State.HELD)},
        Event.SEND: {state: state for state in (State.SENDING, State.STOPPED, State.SAVING, State.HELD, State.SERVING)},
        Event.STOP: {State.SENDING: State.STOPPED, State.SAVING: State.HELD},
        Event.SEAL_MISSING: {State.SERVING: State.SERVING},
        Event.LEAVE_MISSING: {State.STOPPED: State.STOPPED},
        Event.SEAL_STATE: {State.STOPPED: State.STOPPED, State.HELD: State.HELD},
        Event.CLOSE: {
            State.STOPPED: State.CLOSED,
            State.CLOSED: State.CLOSED,
            State.HELD: State.SAVED,
            State.SAVED: State.SAVED,
        },
        Event.TAKE_PREPARED: {State.CLOSED: State.CLEARED},
        Event.MAKE_FINAL: {State.CLEARED: State.FENCED},
        Event.TAKE_STARTED: {State.FENCED: State.GONE},
        Event.SERVE: {State.FENCED: State.SERVING},
        Event.TAKE_FILLED: {State.SERVING: State.GONE},
        Event.ASK_OWNER: {State.FENCED: State.FENCED},
        Event.TAKE_RESUME: {State.FENCED: State.RUNNING},
        Event.SAVE: dict.fromkeys(_AT_HOME, State.SAVING),
        Event.END_SNAPSHOT: {State.SAVED: State.RUNNING},
        Event.ANSWER: {State.WAITING: State.ANSWERED},
        Event.TAKE_CONFIRM: {State.ANSWERED: State.RECEIVING},
        Event.ANSWER_LEG: {State.RECEIVING: State.RECEIVING, State.FILLING: State.FILLING},
        Event.OPEN: {State.RECEIVING: State.RECEIVING, State.RESTORING: State.RESTORING},
        Event.ACCEPT: {State.RECEIVING: State.PREPARED, State.RESTORING: State.RESTORED},
        Event.TAKE_FINAL: {State.PREPARED: State.READY},
        Event.RESTORE: {State.BLANK: State.RESTORING},
        Event.TAKE_SNAPSHOT: {State.RESTORED: State.READY},
        Event.MAKE_STARTED: {State.READY: State.STARTED},
        Event.START_FILLING: {State.READY: State.FILLING},
        Event.FILL: {State.FILLING: State.FILLING},
        Event.MAKE_FILLED: {State.FILLING: State.STARTED},
        Event.TAKE_ABORTED: dict.fromkeys(
            (State.SENDING, State.STOPPED, State.CLOSED, State.CLEARED, State.FENCED), State.RUNNING
        ),
        Event.CANCEL: {
            **dict.fromkeys((State.RUNNING, *_BEFORE_FENCE, *_SNAPSHOT), State.RUNNING),
            **dict.fromkeys((*_BEFORE_START, State.ABORTED), State.ABORTED),
            State.FILLING: State.FILLING,
            State.STARTED: State.STARTED,
        },
    }
)
"""For every event the states that allow it, and where it leads; a pair that is missing is refused."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A message of a migration, and where both handlers are while it is on its way."""

    message: str
    sender: Role
    source: State
    target: State


HANDOVER = (
    Passage("offer", Role.SOURCE, State.OFFERED, State.WAITING),
    Passage("answer", Role.TARGET, State.OFFERED, State.ANSWERED),
    Passage("confirm", Role.SOURCE, State.SENDING, State.ANSWERED),
    Passage("record", Role.SOURCE, State.SENDING, State.RECEIVING),
    Passage("epoch token", Role.SOURCE, State.SENDING, State.RECEIVING),
    Passage("machine state", Role.SOURCE, State.STOPPED, State.RECEIVING),
    Passage("close record", Role.SOURCE, State.CLOSED, State.RECEIVING),
    Passage("PREPARED", Role.TARGET, State.CLOSED, State.PREPARED),
    Passage("FINAL", Role.SOURCE, State.FENCED, State.PREPARED),
    Passage("ABORTED", Role.TARGET, State.FENCED, State.ABORTED),
    Passage("STARTED", Role.TARGET, State.FENCED, State.STARTED),
    Passage("taken", Role.SOURCE, State.GONE, State.STARTED),
)
"""Every message of a migration in its order; ABORTED here is that of a target that gives up instead of starting."""

LEGS = (
    Passage("leg request", Role.SOURCE, State.SENDING, State.RECEIVING),
    Passage("leg answer", Role.TARGET, State.SENDING, State.RECEIVING),
)
"""What else is said after the connections were lost in the rounds."""

POSTCOPY = (
    Passage("leg request", Role.SOURCE, State.SERVING, State.FILLING),
    Passage("leg answer", Role.TARGET, State.SERVING, State.FILLING),
    Passage("demand", Role.TARGET, State.SERVING, State.FILLING),
    Passage("missing page", Role.SOURCE, State.SERVING, State.FILLING),
    Passage("FILLED", Role.TARGET, State.SERVING, State.STARTED),
)
"""What else is said behind a STARTED of a target that misses pages."""


class Lost(enum.Enum):
    """Who is lost while a message is on its way."""

    SOURCE = "the source's VMM or platform"
    TARGET = "the target's VMM or platform"
    LINK = "the link"


class Fate(enum.Enum):
    """What becomes of the guest."""

    HERE = "runs on at the source"
    THERE = "runs at the target"
    SETTLED_HERE = "waits at the source for the target's token, and runs on there"
    SETTLED_THERE = "runs at the target; the source waits for its token, and ends"
    OWNER = "waits at the source for its owner's word"
    HALVED = "is lost: neither side has all of its memory"
    STRANDED = "runs at the target until it needs a page that has not come; both sides wait for other connections"
    NOWHERE = "is lost with its only right to run"


def fate(passage: Passage, lost: Lost) -> Fate:
    """What becomes of the guest if somebody is lost just then; it follows from the states."""
    if passage.target is State.FILLING:
        return Fate.STRANDED if lost is Lost.LINK else Fate.HALVED
    started = passage.target is State.STARTED
    match lost:
        case Lost.SOURCE:
            return Fate.THERE if started else Fate.NOWHERE
        case Lost.TARGET if passage.source in {State.SERVING, State.GONE}:
            return Fate.NOWHERE
        case Lost.LINK if passage.source is State.GONE:
            return Fate.THERE
        case _ if passage.source in STEPS[Event.CANCEL]:
            return Fate.HERE
        case _:
            settled = Fate.SETTLED_THERE if started else Fate.SETTLED_HERE
            return Fate.OWNER if lost is Lost.TARGET else settled


START = MappingProxyType({Role.SOURCE: State.RUNNING, Role.TARGET: State.WAITING, Role.RESTORE: State.BLANK})


class Commit:
    """One handler's place in the table; not thread-safe by itself."""

    def __init__(self, role: Role) -> None:
        self.state = START[role]

    @property
    def may_run(self) -> bool:
        """Whether the guest's vCPUs may enter guest mode."""
        return FACTS[self.state].runs

    def allows(self, event: Event) -> bool:
        """Whether `event` is possible now."""
        return self.state in STEPS[event]

    def require(self, event: Event) -> None:
        """Do nothing if `event` is possible now.

        Raises:
            UserError: it is not; the message names the state and the way out.
        """
        if not self.allows(event):
            raise UserError(
                f"the migration handler cannot {event.value} in state {self.state.name}: {FACTS[self.state].way_out}"
            )

    def step(self, event: Event) -> None:
        """Go where `event` leads.

        Raises:
            UserError: as `require`; the state stays.
        """
        self.require(event)
        self.state = STEPS[event][self.state]
