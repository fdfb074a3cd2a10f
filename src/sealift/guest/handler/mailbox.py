"""The handler's end of the RFC's mailbox: one page a request, through memory that the hypervisor writes at will.

Params, IO header and IO page are copied once and only the copies are used. A page is sealed in private memory and
laid out afterwards: whatever the hypervisor does to the mailbox meanwhile, no valid tag is ever made over it. The
last answer is kept, so the same request again gets the same bytes. Which migration is under way, its epoch tokens,
state and close go through the handler itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from sealift.address import PAGE_SHIFT, page_aligned
from sealift.errors import SealError, StreamError, UserError
from sealift.guest.handler.commit import Event
from sealift.guest.handler.handler import MigrationHandler
from sealift.wire.lookout import Lookout
from sealift.wire.mailbox import (
    AREA_SIZE,
    Command,
    Params,
    Result,
    answer,
    copy_record,
    end_watch,
    is_posted,
    put_record,
    watch,
)
from sealift.wire.record import HEADER_SIZE, RecordHeader, RecordKind


@dataclass(frozen=True, slots=True)
class _Answered:
    """The last request that was answered, and how."""

    params: tuple[int, int, int]
    result: Result
    record: bytes | None


class Mailbox:
    """Serves one mailbox; one thread at a time."""

    def __init__(self, handler: MigrationHandler, area: memoryview) -> None:
        """Serve `area`, the mailbox's two pages of the shared plane (`AREA_SIZE` bytes, writable)."""
        if len(area) != AREA_SIZE:
            raise ValueError(f"a mailbox has {AREA_SIZE} bytes, not {len(area)}")
        self._handler = handler
        self._area = area
        self._last = _Answered((0, 0, 0), Result.STALE, None)

    def serve(self) -> bool:
        """Answer the request that waits; False if none does."""
        params = Params.copy(self._area)
        if params.go != 1:
            return False
        asked = (params.request, params.command, params.gpa)
        if asked == self._last.params and params.request != 0:
            done = self._last
        elif params.request <= self._last.params[0]:
            done = _Answered(asked, Result.STALE, None)
        else:
            done = self._last = _Answered(asked, *self._dispatch(params))
        if done.record is not None:
            put_record(self._area, done.record)
        answer(self._area, done.result, params.request)
        return True

    def comes(self, lookout: Lookout) -> bool:
        """Whether another request comes within a moment, in which the hypervisor need not ring."""
        watch(self._area)
        if lookout.sees(self._posted):
            return True
        end_watch(self._area)
        return self._posted()

    def _posted(self) -> bool:
        return is_posted(self._area)

    def _dispatch(self, params: Params) -> tuple[Result, bytes | None]:
        match params.command:
            case Command.INIT:
                ready = self._handler.allows(Event.SEND) or self._handler.allows(Event.OPEN)
                return (Result.OK if ready else Result.WRONG_STATE), None
            case Command.ENCRYPT:
                return self._encrypt(params.gpa)
            case Command.DECRYPT:
                return self._decrypt(params.gpa), None
            case Command.RESET:
                # The RFC sends it from every cleanup; the kept ciphertext goes, the migration does not.
                return Result.OK, None
            case _:
                return Result.INVALID_FUNCTION, None

    def _encrypt(self, gpa: int) -> tuple[Result, bytes | None]:
        page = self._page(gpa)
        if isinstance(page, Result):
            return page, None
        try:
            record = self._handler.seal_page(page)
        except UserError:
            return Result.WRONG_STATE, None
        return (Result.OK, record) if record is not None else (Result.NOT_IN_ROUND, None)

    def _decrypt(self, gpa: int) -> Result:
        page = self._page(gpa)
        if isinstance(page, Result):
            return page
        try:
            record = copy_record(self._area)
            claimed = _only_page(record)
        except StreamError:
            return Result.MALFORMED
        if claimed != page:
            return Result.BAD_GPA
        try:
            self._handler.open(memoryview(record))
        except UserError:
            return Result.WRONG_STATE
        except (StreamError, SealError):
            return Result.AUTHENTICATION
        return Result.OK

    def _page(self, gpa: int) -> int | Result:
        """The RAM page that starts at `gpa`, or why there is none that may travel."""
        offset = self._handler.facts.layout.offset(gpa)
        if offset is None or not page_aligned(gpa):
            return Result.BAD_GPA
        page = offset >> PAGE_SHIFT
        return Result.EXCLUDED if page in self._handler.excluded else page


def _only_page(record: bytes) -> int | None:
    """The page that a one-page record claims to hold; None if it is another kind of record."""
    if RecordHeader.decode(record).kind is not RecordKind.PAGES:
        return None
    return int.from_bytes(record[HEADER_SIZE : HEADER_SIZE + 8], "little")
