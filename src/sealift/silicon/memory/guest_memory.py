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
from sealift.errors import GuestError, RefusedError
from sealift.pageset import PageNumbers, PageSet, Span
from sealift.sev.status import Status, failure
from sealift.silicon.memory.plane import Plane
from sealift.silicon.memory.presence import Presence
from sealift.silicon.memory.xts import PageCipher

_CONVERT_CHUNK = 1024
"""Pages a flip or launch update converts at a time: bounds the private copies to 4 MiB."""


@dataclass(frozen=True, slots=True)
class WriteLogs:
    """Pages of a span the guest wrote since the last look: through the C-bit, and without it."""

    encrypted: PageSet
    plain: PageSet


@dataclass(frozen=True, slots=True)
class WriteMeter:
    """Pages written on each plane since it was started; the dirty sets know nothing of it."""

    private: PageSet
    shared: PageSet


@dataclass(frozen=True, slots=True)
class PageStates:
    """What travels of pages beside their content.

    Attributes:
        shared: pages in shared state.
        sealed: pages whose content counts as written through the C-bit.
        opened: private pages that were also written without it.
    """

    shared: PageSet
    sealed: PageSet
    opened: PageSet


class Windows(Protocol):
    """What memory needs of an engine."""

    @property
    def waits_for_pages(self) -> bool:
        """Whether a vCPU that meets a page which `Presence` lacks waits for it."""

    @property
    def runs_limit(self) -> int | None:
        """The most runs of shared pages it can show at a time; None if that makes no difference to it."""

    def quiesced(self) -> AbstractContextManager[None]:
        """Hold every vCPU out of guest mode; re-entrant."""

    def take_logs(self, span: Span) -> WriteLogs:
        """Get the write logs of a span and clear them with a TLB flush; the caller holds `quiesced`."""

    def remap(self, span: Span, changed: PageSet, shared: PageSet) -> None:
        """What lies behind the pages `changed` is another now; `shared` are those in shared state.

        Both are parts, numbered from `span.base`. The caller holds `quiesced`.
        """


class GuestMemory:
    """The RAM of one guest.

    Attributes:
        private: the plane that never leaves this process.
        shared: the plane both processes map.
        states: pages in shared state.
        presence: which pages of the private plane are not here yet.
    """

    def __init__(self, layout: RamLayout, memory_key: bytes, planes: tuple[Plane, Plane] | None = None) -> None:
        """With `planes`, the private and the shared one, in place of two new ones."""
        self.layout = layout
        self.private, self.shared = planes or (
            Plane("sealift-private", layout.size),
            Plane("sealift-shared", layout.size),
        )
        pages = layout.pages
        self.states = PageSet(pages)
        self._runs = 0  # how many runs those are
        self.presence = Presence(pages)
        self._sealed = PageSet(pages)  # content counts as written through the C-bit since launch or the last flip
        self._opened = PageSet(pages)  # private pages written without C-bit since launch or the last flip
        self._unsent = PageSet(pages)
        self._shared_dirty = PageSet(pages)
        self._meter: WriteMeter | None = None
        self._cipher = PageCipher(memory_key)
        self._addresses = PageAddresses(layout)
        self._lock = threading.Lock()
        self._windows: Windows | None = None
        self._vmsas: dict[int, bytes] = {}

    def attach(self, windows: Windows) -> None:
        """Connect the engine whose logs are read and whose windows follow the page states."""
        self._windows = windows

    # --- flips -------------------------------------------------------------------------------------------------

    def convert(self, first: int, count: int, *, to_shared: bool) -> None:
        """Carry out KVM_HC_MAP_GPA_RANGE on `count` RAM pages from `first`; pages already in that state stay.

        Private to shared leaves ciphertext on the shared plane, shared to private leaves decrypted garbage on the
        private one. What the guest wrote through the *other* view since launch or the last flip is kept, as in DRAM,
        which holds whatever was written last. A page that it wrote through both counts as written with C-bit, but for
        one of nothing but zeros: Linux writes those anew without C-bit before it shares them, and takes an interrupt
        for acknowledged if it finds anything else.

        Raises:
            GuestError: the engine cannot show so scattered a mix of page states; nothing has changed.
        """
        span = Span.covering(first, count)
        with self._lock:
            if not self._other_state(span, span.of_range(first, count), to_shared=to_shared):
                return
        self.presence.wait(first, count)  # what is to be converted must be here
        with self._quiesced():
            self.collect(span)
            with self._lock:
                changed = self._other_state(span, span.of_range(first, count), to_shared=to_shared)
                self._change_states(span, changed, to_shared=to_shared)
                populated = self.private.populated(span)
                if to_shared:
                    self._to_shared(span, changed, populated)
                else:
                    populated |= self.shared.populated(span)
                    self._to_private(span, changed, populated)
                populated &= changed
                self._mark(span, private=populated, shared=changed)
                if self._windows is not None:
                    self._windows.remap(span, changed, self.states.part(span))

    def _other_state(self, span: Span, pages: PageSet, *, to_shared: bool) -> PageSet:
        """Those of `pages` that are not yet in the state wanted."""
        states = self.states.part(span)
        if to_shared:
            pages -= states
        else:
            pages &= states
        return pages

    def _change_states(self, span: Span, changed: PageSet, *, to_shared: bool) -> None:
        """Enter the new states of pages that are all in the other one."""
        states = self.states.part(span)
        before = states.copy()
        around = Span(span.start, min(span.stop + 1, self.states.span.stop))  # the run behind it may join or part
        runs = self._runs - self.states.count_runs(around)
        if to_shared:
            states |= changed
        else:
            states -= changed
        runs += self.states.count_runs(around)
        try:
            self._require_showable(runs)
        except GuestError:
            states.words[:] = before.words
            raise
        self._runs = runs

    def _require_showable(self, runs: int) -> None:
        limit = None if self._windows is None else self._windows.runs_limit
        if limit is not None and runs > limit:
            raise GuestError(f"guest memory would consist of more than {limit} separate shared ranges")

    def _to_shared(self, span: Span, changed: PageSet, populated: PageSet) -> None:
        sealed, opened = self._sealed.part(span), self._opened.part(span)
        written = changed.copy()
        written &= sealed
        both = written.copy()
        both &= opened
        for pages in _chunks(both, span.base):
            zeros = pages[~self.private.words[pages].any(axis=1)]
            self.shared.words[zeros] = 0
            written.remove(zeros - np.uint64(span.base))
        for pages in _chunks(written, span.base):
            self.shared.words[pages] = self._cipher.encrypt(self.private.words[pages], self._addresses.of(pages))
        plain = changed.copy()
        plain -= sealed
        plain &= populated
        for pages in _chunks(plain, span.base):
            self.shared.words[pages] = self.private.words[pages]
        sealed -= changed
        opened -= changed

    def _to_private(self, span: Span, changed: PageSet, populated: PageSet) -> None:
        sealed = self._sealed.part(span)
        stale = changed.copy()
        stale -= sealed
        stale &= populated
        for pages in _chunks(stale, span.base):
            # Fancy indexing copies: what the host changes meanwhile cannot differ from what is decrypted.
            self.private.words[pages] = self._cipher.decrypt(self.shared.words[pages], self._addresses.of(pages))
        sealed |= changed

    # --- dirty sets ---------------------------------------------------------------------------------------------

    def collect(self, span: Span | None = None) -> None:
        """OR the engine's logs, of all pages or a part, into the sets; later guest writes show up in the next logs."""
        if self._windows is None:
            return
        part = self.states.span if span is None else span
        with self._quiesced():
            logs = self._windows.take_logs(part)
            with self._lock:
                states, sealed = self.states.part(part), self._sealed.part(part)
                sealed |= logs.encrypted
                hidden = logs.plain.copy()
                hidden -= states
                self._opened.add_part(part, hidden)
                visible = logs.plain.copy()
                visible &= states
                written = logs.encrypted.copy()
                written |= hidden
                self._mark(part, private=written, shared=visible)

    def _mark(self, span: Span, *, private: PageSet, shared: PageSet) -> None:
        """Pages of a part were written; the caller holds the lock."""
        self._unsent.add_part(span, private)
        self._shared_dirty.add_part(span, shared)
        if self._meter is not None:
            self._meter.private.add_part(span, private)
            self._meter.shared.add_part(span, shared)

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

    def count_private(self) -> int:
        """Private pages that are no holes."""
        return len(self.private.populated())

    def put_back(self, pages: PageSet) -> None:
        """These pages still have to be sent."""
        with self._lock:
            self._unsent |= pages

    def take_shared_dirty(self) -> PageSet:
        """Collect, then move the set of shared-plane pages written since out."""
        self.collect()
        with self._lock:
            return self._shared_dirty.take()

    def start_meter(self) -> None:
        """Count writes from now on, for who wants to know their rate; a meter that runs begins anew."""
        self.collect()  # what was written before is in the dirty sets and counts for nothing here
        with self._lock:
            self._meter = WriteMeter(PageSet(self.layout.pages), PageSet(self.layout.pages))

    def read_meter(self) -> tuple[int, int]:
        """Pages written on the private and the shared plane since the meter was started; it goes on."""
        self.collect()
        with self._lock:
            return (0, 0) if self._meter is None else (len(self._meter.private), len(self._meter.shared))

    def stop_meter(self) -> None:
        """Count no more."""
        with self._lock:
            self._meter = None

    # --- save areas of SEV-ES vCPUs ------------------------------------------------------------------------------

    def place_vmsa(self, vcpu: int, page: bytes) -> None:
        """Make `page` the save area of a vCPU: a private page outside of RAM, as KVM gives each vCPU."""
        self._vmsas[vcpu] = page

    def vmsa(self, vcpu: int) -> bytes | None:
        """The save area of a vCPU; None if it has none, or an empty one in place of a receiver's."""
        return self._vmsas.get(vcpu) or None

    def read_vmsa(self, vcpu: int) -> bytes:
        """The save area of a vCPU.

        Raises:
            FirmwareError: INVALID_ADDRESS, it has none.
        """
        page = self.vmsa(vcpu)
        if page is None:
            raise failure(Status.INVALID_ADDRESS, f"vCPU {vcpu} has no VMSA")
        return page

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

    def patch_private(self, gpa: int, data: bytes) -> None:
        """`write_private` under a guest that may be running (DBG_ENCRYPT): what vCPUs had cached of it goes.

        Raises:
            FirmwareError: INVALID_ADDRESS, not all of the range is RAM.
        """
        offset = self._offset(gpa, len(data))
        self._require_here(offset >> PAGE_SHIFT, pages_spanned(offset, len(data)))
        with self._quiesced():
            self.private.data[offset : offset + len(data)] = data
            self._written(offset, len(data))
            self.invalidate(offset >> PAGE_SHIFT, pages_spanned(offset, len(data)))

    def invalidate(self, first: int, count: int) -> None:
        """Somebody else than the guest wrote to these pages: what vCPUs had cached of them, code included, goes."""
        span = Span.covering(first, count)
        with self._quiesced(), self._lock:
            if self._windows is not None:
                self._windows.remap(span, span.of_range(first, count), self.states.part(span))

    def copy_private(self, gpa: int, destination: memoryview) -> None:
        """Fill `destination` from the private plane (DBG_DECRYPT); looking at a hole does not fill it.

        Raises:
            FirmwareError: INVALID_ADDRESS, not all of the range is RAM.
        """
        offset = self._offset(gpa, len(destination))
        self._require_here(offset >> PAGE_SHIFT, pages_spanned(offset, len(destination)))
        self.private.read_into(offset, destination)

    def view_private(self, gpa: int, length: int) -> memoryview:
        """The private plane itself, to read inside the boundary (SEND_UPDATE_DATA).

        Raises:
            FirmwareError: INVALID_ADDRESS, not all of the range is RAM.
        """
        offset = self._offset(gpa, length)
        self._require_here(offset >> PAGE_SHIFT, pages_spanned(offset, length))
        return self.private.data[offset : offset + length].toreadonly()

    def read_private(self, gpa: int, length: int) -> bytes:
        """Read plaintext inside the boundary (start-up table, secret area).

        Raises:
            FirmwareError: INVALID_ADDRESS, not all of the range is RAM.
        """
        return bytes(self.view_private(gpa, length))

    def read_host_view(self, first: int, count: int) -> None:
        """Leave on the shared plane the ciphertext of those of the pages that are private."""
        span = Span.covering(first, count)
        self._require_here(first, count)
        # A page that a guest declared shared meanwhile would lose what it wrote there.
        with self._quiesced():
            populated = self.private.populated(span)
            for pages in _chunks(self._private_among(span, first, count), span.base):
                # Looking at a hole must not fill it: it holds zeros.
                content = np.zeros((len(pages), self.private.words.shape[1]), np.uint64)
                filled = populated.holds(pages - np.uint64(span.base))
                content[filled] = self.private.words[pages[filled]]
                self.shared.words[pages] = self._cipher.encrypt(content, self._addresses.of(pages))

    def write_host_view(self, first: int, count: int) -> None:
        """The host wrote DRAM: private pages get the decryption of what lies on the shared plane."""
        span = Span.covering(first, count)
        self._require_here(first, count)
        with self._quiesced():
            private = self._private_among(span, first, count)
            for pages in _chunks(private, span.base):
                self.private.words[pages] = self._cipher.decrypt(self.shared.words[pages], self._addresses.of(pages))
            with self._lock:
                self._sealed.add_part(span, private)
                visible = span.of_range(first, count)
                visible -= private
                self._mark(span, private=private, shared=visible)
                if self._windows is not None:
                    # Not their state but what lies behind them changed: code that was cached must go.
                    self._windows.remap(span, private, self.states.part(span))

    def _written(self, offset: int, length: int) -> None:
        first, count = offset >> PAGE_SHIFT, pages_spanned(offset, length)
        with self._lock:
            self._unsent.add_range(first, count)
            self._sealed.add_range(first, count)
            if self._meter is not None:
                self._meter.private.add_range(first, count)

    def _private_among(self, span: Span, first: int, count: int) -> PageSet:
        wanted = span.of_range(first, count)
        with self._lock:
            wanted -= self.states.part(span)
        return wanted

    def _offset(self, gpa: int, length: int) -> int:
        offset = self.layout.offset(gpa, length)
        if offset is None:
            raise failure(Status.INVALID_ADDRESS, f"{length} bytes at GPA {gpa:#x} are not all guest RAM")
        return offset

    def shared_pages(self) -> PageSet:
        """A copy of the set of pages in shared state."""
        with self._lock:
            return self.states.copy()

    # --- pages that come late --------------------------------------------------------------------------------

    def expect(self, missing: PageSet) -> None:
        """These private pages come while the guest runs (post-copy): until then there are holes in their places.

        Raises:
            GuestError: the engine's vCPUs cannot wait for a page.
        """
        if self._windows is not None and not self._windows.waits_for_pages:
            raise GuestError("this guest's vCPUs cannot wait for pages here: no post-copy with this engine or SEV-ES")
        self.private.punch(missing)
        self.presence.expect(missing)

    def install(self, numbers: PageNumbers, data: memoryview) -> None:
        """Put the content of missing pages in place; whoever waits for them goes on."""
        self.private.scatter(numbers, data)  # nobody looks there before they count as present
        self.presence.arrived(numbers)

    def _require_here(self, first: int, count: int) -> None:
        """For a host's looks at memory, which do not wait.

        Raises:
            RefusedError: pages are missing.
        """
        lacking = self.presence.lacking(first, count)
        if lacking.size:
            raise RefusedError(f"page {lacking[0]} is still on the host that the guest comes from (post-copy)")

    # --- state that travels ----------------------------------------------------------------------------------

    def save_states(self) -> PageStates:
        """Everything that is known of pages beside their content."""
        self.collect()
        with self._lock:
            return PageStates(self.states.copy(), self._sealed.copy(), self._opened.copy())

    def load_states(self, states: PageStates) -> None:
        """Take over page states without converting anything: the planes came from the source as they were."""
        with self._quiesced():
            self.collect()  # what the receiver wrote here must not count as the guest's
            self._take_over(states)

    def load_shared(self, shared: PageSet) -> None:
        """Take over which pages of a guest that is being received are in shared state; nothing is converted.

        Raises:
            GuestError: the engine cannot show so scattered a mix of page states; nothing has changed.
        """
        self._require_showable(shared.count_runs())
        with self._quiesced():
            with self._lock:
                found = PageStates(shared, self._sealed.copy(), self._opened.copy())
            self._take_over(found)

    def settle_received(self) -> None:
        """A secure processor has received the guest: what was put to private pages, and nothing else, is their content.

        It counts as written through the C-bit. Not before: while the host still tells which pages are shared, none of
        them may lose that mark, or a later flip would show its plaintext.
        """
        with self._lock:
            self._sealed -= self.states
            rest = PageSet.full(self.layout.pages)
            rest -= self._sealed
        self.private.punch(rest)

    def mark_all_unsent(self) -> None:
        """Whatever is no hole has to be sent: writes are logged, so a page that fills meanwhile is in the log."""
        self.put_back(self.private.populated())

    def _take_over(self, found: PageStates) -> None:
        with self._lock:
            states = found.shared
            self.states, self._sealed, self._opened = states, found.sealed, found.opened
            self._runs = states.count_runs()
            if self._windows is not None:
                self._windows.remap(states.span, PageSet.full(self.layout.pages), self.states)

    def close(self) -> None:
        """Give both planes back; for memory that no guest has used."""
        self.private.close()
        if self.shared is not self.private:
            self.shared.close()

    def forget(self) -> None:
        """Give the private plane back to the machine, and all save areas; the guest is not here any more."""
        self._vmsas.clear()
        self.private.punch(PageSet.full(self.layout.pages))

    def _quiesced(self) -> AbstractContextManager[None]:
        return _NOTHING if self._windows is None else self._windows.quiesced()


class _Nothing(AbstractContextManager[None]):
    def __exit__(self, *_: object) -> None:
        return None


_NOTHING = _Nothing()


def _chunks(pages: PageSet, base: int) -> Iterator[PageNumbers]:
    """The numbers of a part that begins at page `base`, some at a time."""
    numbers = pages.numbers() + np.uint64(base)
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
