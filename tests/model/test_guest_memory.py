"""The platform's `GuestMemory` takes the steps that the model takes, so that what the model shows is shown of it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from enum import Enum, auto

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.migration import EFFECTS, Step
from model.page import Flips, Guest, Page, flip, written
from sealift.address import PAGE_SIZE, Gpa, RamBlock, RamLayout
from sealift.pageset import PageSet, Span
from sealift.silicon.memory.guest_memory import GuestMemory, WriteLogs
from sealift.silicon.memory.xts import KEY_BYTES

SECRET = b"through C=1 only"
PUBLIC = b"through C=0 too."
RULES = Flips()


class Action(Enum):
    """What the test can do to the one page of the guest, both in the model and in truth."""

    WRITE_C1 = auto()
    WRITE_C0 = auto()
    FLIP = auto()
    COLLECT = auto()
    TAKE_UNSENT = auto()
    TAKE_SHARED = auto()


class LoggingEngine:
    """Windows of an engine with one page and no vCPUs: it only keeps the logs."""

    runs_limit: int | None = None
    waits_for_pages = True

    def __init__(self) -> None:
        self.logs = WriteLogs(PageSet(1), PageSet(1))

    def quiesced(self) -> AbstractContextManager[None]:
        """There is no vCPU to hold."""
        return nullcontext()

    def take_logs(self, span: Span) -> WriteLogs:
        """Get and clear."""
        return WriteLogs(self.logs.encrypted.part(span).take(), self.logs.plain.part(span).take())

    def remap(self, span: Span, changed: PageSet, shared: PageSet) -> None:
        """Nothing is mapped."""


class Truth:
    """One page of real guest memory, and the guest that writes it."""

    def __init__(self) -> None:
        layout = RamLayout((RamBlock("pc.ram", Gpa(0), PAGE_SIZE),))
        self.memory = GuestMemory(layout, bytes(range(KEY_BYTES)))
        self.engine = LoggingEngine()
        self.memory.attach(self.engine)

    def write(self, *, c_bit: bool) -> None:
        """Write 16 bytes: a secret at the page's start, or something public in its middle."""
        private = c_bit or 0 not in self.memory.states
        plane = self.memory.private if private else self.memory.shared
        start, text = (0, SECRET) if c_bit else (PAGE_SIZE // 2, PUBLIC)
        plane.data[start : start + len(text)] = text
        (self.engine.logs.encrypted if c_bit else self.engine.logs.plain).mark(0)

    def do(self, action: Action) -> None:
        """Carry out one action."""
        match action:
            case Action.WRITE_C1 | Action.WRITE_C0:
                self.write(c_bit=action is Action.WRITE_C1)
            case Action.FLIP:
                self.memory.convert(0, 1, to_shared=0 not in self.memory.states)
            case Action.COLLECT:
                self.memory.collect()
            case Action.TAKE_UNSENT:
                self.memory.take_unsent()
            case Action.TAKE_SHARED:
                self.memory.take_shared_dirty()


def _collected(page: Page) -> Page:
    for step in (Step.GET, Step.CLEAR, Step.MERGE):
        page = EFFECTS[step](page, RULES)
    return page._replace(got_c1=False, got_c0=False)


def _modelled(page: Page, action: Action) -> Page:
    match action:
        case Action.WRITE_C1:
            return written(page, c_bit=True)._replace(log_c1=True)
        case Action.WRITE_C0:
            return written(page, c_bit=False)._replace(log_c0=True)
        case Action.FLIP:
            return flip(page, RULES, Guest.LINUX)[1]
        case Action.COLLECT:
            return _collected(page)
        case Action.TAKE_UNSENT:
            return _collected(page)._replace(unsent=False)
        case Action.TAKE_SHARED:
            return _collected(page)._replace(shared_dirty=False)


def _bits_of_model(page: Page) -> dict[str, bool]:
    return {
        "is_shared": page.is_shared,
        "sealed": page.sealed,
        "unsent": page.unsent,
        "shared_dirty": page.shared_dirty,
        "log_c1": page.log_c1,
        "log_c0": page.log_c0,
        "secret": page.secret,
    }


def _bits_of_memory(truth: Truth) -> dict[str, bool]:
    memory, logs = truth.memory, truth.engine.logs
    return {
        "is_shared": 0 in memory.states,
        "sealed": 0 in memory._sealed,
        "unsent": 0 in memory._unsent,
        "shared_dirty": 0 in memory._shared_dirty,
        "log_c1": 0 in logs.encrypted,
        "log_c0": 0 in logs.plain,
        "secret": SECRET in bytes(memory.private.data),
    }


@pytest.mark.attack(
    "page states", "reads the shared plane through any course of writes, flips and host accesses", gains="nothing"
)
@pytest.mark.parametrize("launched", [True, False], ids=["launched content", "a hole written through C=0"])
@given(actions=st.lists(st.sampled_from(Action), max_size=14))
def test_memory_and_model_agree_on_every_bit_and_no_secret_shows(launched: bool, actions: list[Action]) -> None:  # noqa: FBT001  # a test parameter
    truth = Truth()
    try:
        if launched:
            truth.memory.write_private(0, SECRET)
            page = Page(shared_dirty=False)
        else:
            truth.write(c_bit=False)
            page = Page(
                c_bit=False,
                secret=False,
                hidden_secret=False,
                sealed=False,
                log_c0=True,
                unsent=False,
                shared_dirty=False,
            )
        assert _bits_of_memory(truth) == _bits_of_model(page)
        for action in actions:
            truth.do(action)
            page = _modelled(page, action)
            assert _bits_of_memory(truth) == _bits_of_model(page)
            assert SECRET not in bytes(truth.memory.shared.data)
    finally:
        # Hypothesis makes hundreds of these, and a plane keeps its memfd open.
        truth.memory.close()
