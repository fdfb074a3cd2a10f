"""Guest RAM inside the boundary: two planes, page states, flips, dirty sets, and what the host sees.

The one home of page-state semantics; engines only report which pages were written through which window.

::

                      C-bit set, or page private          C-bit clear and page shared
    guest access ───────────► private plane                 ───────────► shared plane
                              (plaintext, ours alone)                    (what DRAM shows the host)

    engine's logs:  encrypted window, plain window ──collect()──► unsent        (private plane, for the handler)
                                                             └──► shared_dirty  (shared plane, for the VMM)

Order that loses no page (shown by tests/model): get the log, clear it with a TLB flush, clear `unsent`, then read.
Locking: `collect` and `convert` hold the engine's quiescence, then the lock; everything else only the lock.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sealift.address import PAGE_SHIFT, RamLayout, pages_spanned
from sealift.errors import FirmwareError
from sealift.pageset import PageNumbers, PageSet
from sealift.sev.status import Status
from sealift.silicon.memory.plane import Plane
from sealift.silicon.memory.xts import PageCipher

_CONVERT_CHUNK = 1024
"""Pages a flip or launch update converts at a time: bounds the private copies to 4 MiB."""


@dataclass(frozen=True, slots=True)
class WriteLogs:
    """Pages the guest wrote since the last look: through the C-bit, and without it."""

    encrypted: PageSet
    plain: PageSet


class Windows(Protocol):
    """What memory needs of an engine."""

    def quiesced(self) -> AbstractContextManager[None]:
        """Hold every vCPU out of guest mode; re-entrant."""

    def take_logs(self) -> WriteLogs:
        """Get the write logs and clear them with a TLB flush; the caller holds `quiesced`."""

    def remap(self, pages: PageSet, shared: PageSet) -> None:
        """Page states of `pages` changed; `shared` is the set of all shared pages. The caller holds `quiesced`."""


class GuestMemory:
    """The RAM of one guest.

    Attributes:
        private: the plane that never leaves this process.
        shared: the plane both processes map.
        states: pages in shared state.
    """

    def __init__(self, layout: RamLayout, memory_key: bytes) -> None:
        self.layout = layout
        self.private = Plane("sealift-private", layout.size)
        self.shared = Plane("sealift-shared", layout.size)
        pages = layout.pages
        self.states = PageSet(pages)
        self._sealed = PageSet(pages)  # content counts as written through the C-bit since launch or the last flip
        self._unsent = PageSet(pages)
        self._shared_dirty = PageSet(pages)
        self._cipher = PageCipher(memory_key)
        self._addresses = PageAddresses(layout)
        self._lock = threading.Lock()
        self._windows: Windows | None = None

    def attach(self, windows: Windows) -> None:
        """Connect the engine whose logs are read and whose windows follow the page states."""
        self._windows = windows

    # --- flips -------------------------------------------------------------------------------------------------

    def convert(self, first: int, count: int, *, to_shared: bool) -> None:
        """Carry out KVM_HC_MAP_GPA_RANGE on `count` RAM pages from `first`; pages already in that state stay.

        Private to shared leaves ciphertext on the shared plane, shared to private leaves decrypted garbage on the
        private one. What the guest wrote through the *other* view since launch or the last flip is kept, as in DRAM,
        which holds whatever was written last.
        """
        with self._quiesced():
            self.collect()
            with self._lock:
                changed = PageSet(self.layout.pages)
                changed.add_range(first, count)
                populated = self.private.populated(first, count)
                if to_shared:
                    changed -= self.states
                    self._to_shared(changed, populated)
                    self.states |= changed
                else:
                    changed &= self.states
                    populated |= self.shared.populated(first, count)
                    self._to_private(changed, populated)
                    self.states -= changed
                self._shared_dirty |= changed
                populated &= changed
                self._unsent |= populated
                if self._windows is not None:
                    self._windows.remap(changed, self.states)

    def _to_shared(self, changed: PageSet, populated: PageSet) -> None:
        written = changed.copy()
        written &= self._sealed
        for pages in _chunks(written):
            self.shared.words[pages] = self._cipher.encrypt(self.private.words[pages], self._addresses.of(pages))
        plain = changed.copy()
        plain -= self._sealed
        plain &= populated
        for pages in _chunks(plain):
            self.shared.words[pages] = self.private.words[pages]
        self._sealed -= changed

    def _to_private(self, changed: PageSet, populated: PageSet) -> None:
        stale = changed.copy()
        stale -= self._sealed
        stale &= populated
        for pages in _chunks(stale):
            # Fancy indexing copies: what the host changes meanwhile cannot differ from what is decrypted.
            self.private.words[pages] = self._cipher.decrypt(self.shared.words[pages], self._addresses.of(pages))
        self._sealed |= changed

    # --- dirty sets ---------------------------------------------------------------------------------------------

    def collect(self) -> None:
        """OR the engine's logs into the sets; every later guest write shows up in the next logs."""
        if self._windows is None:
            return
        with self._quiesced():
            logs = self._windows.take_logs()
            with self._lock:
                self._sealed |= logs.encrypted
                self._unsent |= logs.encrypted
                hidden = logs.plain.copy()
                hidden -= self.states
                self._unsent |= hidden
                visible = logs.plain.copy()
                visible &= self.states
                self._shared_dirty |= visible

    def take_unsent(self) -> PageSet:
        """Collect, then move the set of private-plane pages written since out."""
        self.collect()
        with self._lock:
            return self._unsent.take()

    def count_unsent(self) -> int:
        """Collect, and count without moving."""
        self.collect()
        with self._lock:
            return len(self._unsent)

    def put_back(self, pages: PageSet) -> None:
        """These pages still have to be sent."""
        with self._lock:
            self._unsent |= pages

    def take_shared_dirty(self) -> PageSet:
        """Collect, then move the set of shared-plane pages written since out."""
        self.collect()
        with self._lock:
            return self._shared_dirty.take()

    # --- the launch and the host's view -------------------------------------------------------------------------

    def move_to_private(self, gpa: int, length: int) -> Iterator[memoryview]:
        """LAUNCH_UPDATE_DATA: copy from the shared to the private plane once, leave ciphertext, yield the copies.

        The caller measures what is yielded: nothing outside this process can change it any more.

        Raises:
            FirmwareError: INVALID_ADDRESS, not all of the range is RAM.
        """
        offset = self._offset(gpa, length)
        for start in range(offset, offset + length, _CONVERT_CHUNK << PAGE_SHIFT):
            end = min(start + (_CONVERT_CHUNK << PAGE_SHIFT), offset + length)
            self.private.data[start:end] = self.shared.data[start:end]
            self._written(start, end - start)
            yield self.private.data[start:end].toreadonly()
            self._leave_ciphertext(start, end)

    def _leave_ciphertext(self, start: int, end: int) -> None:
        """What the VMM put there becomes ciphertext; its neighbours in the first and last page may still be due."""
        first = start >> PAGE_SHIFT
        pages = np.arange(first, first + pages_spanned(start, end - start), dtype=np.uint64)
        hidden = self._cipher.encrypt(self.private.words[pages], self._addresses.of(pages))
        offset = start - (first << PAGE_SHIFT)
        self.shared.data[start:end] = hidden.reshape(-1).view(np.uint8).data[offset : offset + end - start]

    def write_private(self, gpa: int, data: bytes) -> None:
        """Write plaintext inside the boundary (LAUNCH_SECRET).

        Raises:
            FirmwareError: INVALID_ADDRESS, not all of the range is RAM.
        """
        offset = self._offset(gpa, len(data))
        self.private.data[offset : offset + len(data)] = data
        self._written(offset, len(data))

    def read_private(self, gpa: int, length: int) -> bytes:
        """Read plaintext inside the boundary (start-up table, secret area).

        Raises:
            FirmwareError: INVALID_ADDRESS, not all of the range is RAM.
        """
        offset = self._offset(gpa, length)
        return bytes(self.private.data[offset : offset + length])

    def read_host_view(self, first: int, count: int) -> None:
        """Leave on the shared plane the ciphertext of those of the pages that are private."""
        # A page that a guest declared shared meanwhile would lose what it wrote there.
        with self._quiesced():
            populated = self.private.populated(first, count)
            for pages in _chunks(self._private_among(first, count)):
                # Looking at a hole must not fill it: it holds zeros.
                content = np.zeros((len(pages), self.private.words.shape[1]), np.uint64)
                filled = populated.holds(pages)
                content[filled] = self.private.words[pages[filled]]
                self.shared.words[pages] = self._cipher.encrypt(content, self._addresses.of(pages))

    def write_host_view(self, first: int, count: int) -> None:
        """The host wrote DRAM: private pages get the decryption of what lies on the shared plane."""
        with self._quiesced():
            private = self._private_among(first, count)
            for pages in _chunks(private):
                self.private.words[pages] = self._cipher.decrypt(self.shared.words[pages], self._addresses.of(pages))
            with self._lock:
                self._unsent |= private
                self._sealed |= private
                visible = PageSet(self.layout.pages)
                visible.add_range(first, count)
                visible -= private
                self._shared_dirty |= visible
                if self._windows is not None:
                    # Not their state but what lies behind them changed: code that was cached must go.
                    self._windows.remap(private, self.states)

    def _written(self, offset: int, length: int) -> None:
        first, count = offset >> PAGE_SHIFT, pages_spanned(offset, length)
        with self._lock:
            self._unsent.add_range(first, count)
            self._sealed.add_range(first, count)

    def _private_among(self, first: int, count: int) -> PageSet:
        wanted = PageSet(self.layout.pages)
        wanted.add_range(first, count)
        with self._lock:
            wanted -= self.states
        return wanted

    def _offset(self, gpa: int, length: int) -> int:
        offset = self.layout.offset(gpa, length)
        if offset is None:
            raise FirmwareError(Status.INVALID_ADDRESS, f"{length} bytes at GPA {gpa:#x} are not all guest RAM")
        return offset

    def shared_pages(self) -> PageSet:
        """A copy of the set of pages in shared state."""
        with self._lock:
            return self.states.copy()

    # --- state that travels ----------------------------------------------------------------------------------

    def save_states(self) -> tuple[PageSet, PageSet]:
        """Shared pages, and pages whose content counts as written through the C-bit."""
        self.collect()
        with self._lock:
            return self.states.copy(), self._sealed.copy()

    def load_states(self, states: PageSet, sealed: PageSet) -> None:
        """Take over page states without converting anything: the planes came from the source as they were."""
        with self._quiesced(), self._lock:
            everything = PageSet.full(self.layout.pages)
            self.states, self._sealed = states, sealed
            if self._windows is not None:
                self._windows.remap(everything, self.states)

    def forget(self) -> None:
        """Give the private plane back to the machine; the guest is not here any more."""
        self.private.punch(PageSet.full(self.layout.pages))

    def _quiesced(self) -> AbstractContextManager[None]:
        return _NOTHING if self._windows is None else self._windows.quiesced()


class _Nothing(AbstractContextManager[None]):
    def __exit__(self, *_: object) -> None:
        return None


_NOTHING = _Nothing()


def _chunks(pages: PageSet) -> Iterator[PageNumbers]:
    numbers = pages.numbers()
    for start in range(0, len(numbers), _CONVERT_CHUNK):
        yield numbers[start : start + _CONVERT_CHUNK]


class PageAddresses:
    """Guest physical addresses of RAM pages, in bulk."""

    def __init__(self, layout: RamLayout) -> None:
        places = list(layout.ranges())
        self._firsts = np.array([offset >> PAGE_SHIFT for _, offset in places], np.uint64)
        self._shifts = np.array([block.gpa - offset for block, offset in places], np.uint64)

    def of(self, pages: PageNumbers) -> npt.NDArray[np.uint64]:
        """The address of each page, in bytes."""
        blocks = np.searchsorted(self._firsts, pages, side="right") - 1
        return (pages << np.uint64(PAGE_SHIFT)) + self._shifts[blocks]
