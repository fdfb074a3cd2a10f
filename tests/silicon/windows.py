"""A guest without an engine: accesses through either window follow the rule of the design, and are logged."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from sealift.address import PAGE_SIZE, Gpa, RamBlock, RamLayout
from sealift.pageset import PageSet, Span
from sealift.silicon.memory.guest_memory import GuestMemory, WriteLogs
from sealift.silicon.memory.plane import Plane

LAYOUT = RamLayout((RamBlock("low", Gpa(0), 10 * PAGE_SIZE), RamBlock("high", Gpa(1 << 32), 6 * PAGE_SIZE)))
KEY = bytes(range(32))


class ScriptedGuest:
    """Writes as told; memory's `Windows`.

    Attributes:
        remapped: the sets of pages that memory reported as changed.
    """

    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory
        self.remapped: list[PageSet] = []
        self.runs_limit: int | None = None
        self.waits_for_pages = True
        self._lock = threading.RLock()
        self._logs = WriteLogs(PageSet(memory.layout.pages), PageSet(memory.layout.pages))
        memory.attach(self)

    @contextmanager
    def quiesced(self) -> Iterator[None]:
        """Accesses take the same lock."""
        with self._lock:
            yield

    def take_logs(self, span: Span) -> WriteLogs:
        """Get and clear."""
        return WriteLogs(self._logs.encrypted.part(span).take(), self._logs.plain.part(span).take())

    def remap(self, span: Span, changed: PageSet, shared: PageSet) -> None:
        """Nothing is cached here; what memory said is kept."""
        assert np.array_equal(shared.words, self.memory.states.part(span).words)
        said = PageSet(self.memory.layout.pages)
        said.add_part(span, changed)
        self.remapped.append(said)

    def write(self, page: int, data: bytes, *, cbit: bool, at: int = 0) -> None:
        """A store through the window with or without the C-bit."""
        with self._lock:
            start = page * PAGE_SIZE + at
            self._plane(page, cbit=cbit).data[start : start + len(data)] = data
            (self._logs.encrypted if cbit else self._logs.plain).mark(page)

    def read(self, page: int, *, cbit: bool) -> bytes:
        """The whole page, through one of the windows."""
        with self._lock:
            return content(self._plane(page, cbit=cbit), page)

    def _plane(self, page: int, *, cbit: bool) -> Plane:
        return self.memory.shared if not cbit and page in self.memory.states else self.memory.private


def content(plane: Plane, page: int) -> bytes:
    """A page of a plane."""
    return bytes(plane.window(page, 1))


def filled(text: str) -> bytes:
    """A page full of a text."""
    return (text.encode() + b" ").ljust(64, b".") * (PAGE_SIZE // 64)
