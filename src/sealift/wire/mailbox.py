"""The mailbox of the guest-assisted migration RFC: two shared pages, one guest page a request.

::

    0x0000  command params   32 bytes as in the RFC, then our sequence numbers
    0x0800  IO header        u32 length (at most 1024), then the record's header, page number and tag
    0x1000  IO page          the record's ciphertext, 4096 bytes

Both pages can be written by the hypervisor at any time, so nothing in them is believed. What the RFC lacks is here:
the hypervisor numbers its requests; the handler answers with that number and keeps its last answer, so a request
that timed out is asked again, and a stale `done` is told from a fresh one. A page's record has the same bytes as in
the ring. The functions below are the hypervisor's end; the handler's is in ``sealift.guest.handler.mailbox``.

Command params, little-endian: cmd_type u64, gpa u64, prefetch i32, ret i32, go i32, done i32, then
request u64 (hypervisor's number), answered u64 (handler's echo), watched u32 (the handler looks for `go` by itself).

The doorbell is rung unless `watched` is set. The handler clears that before it looks for `go` a last time and sleeps;
the hypervisor sets `go` before it looks at `watched`; each with a full barrier between the two: one sees the other's.
"""

from __future__ import annotations

import enum
import struct
import threading

import msgspec

from sealift.address import PAGE_SIZE, Gpa
from sealift.errors import StreamError
from sealift.wire.record import HEADER_SIZE, TAG_SIZE, page_record_size

AREA_SIZE = 2 * PAGE_SIZE
PARAMS_SIZE = 52
IO_HEADER = 0x800
IO_PAGE = 0x1000

MAX_IO_HEADER = 1024
"""RFC, patches 04 and 05: longer headers are refused on save and on load."""

_PARAMS = struct.Struct("<QQiiiiQQ4x")
_POSTED = struct.Struct("<QQiiiiQQ")
_RET = struct.Struct("<i")
_FLAG = struct.Struct("<i")
_SEQUENCE = struct.Struct("<Q")
_LENGTH = struct.Struct("<I")
_RET_AT, _GO_AT, _DONE_AT, _ANSWERED_AT, _WATCHED_AT = 20, 24, 28, 40, 48

_BARRIER = threading.Lock()
"""Taken and given back for what that does to memory alone."""

_HEAD_SIZE = HEADER_SIZE + 8
_RECORD_SIZE = page_record_size(1)


class Command(enum.IntEnum):
    """cmd_type, numbered by the RFC (hence the 0)."""

    INIT = 0
    ENCRYPT = 1
    DECRYPT = 2
    RESET = 3


class Result(enum.IntEnum):
    """ret: the first three are the RFC's, the others ours."""

    OK = 0
    INVALID_FUNCTION = -1
    """Also what the hypervisor presets."""
    AUTHENTICATION = -2
    """The record is not authentic, or not for this place; the target is aborted."""
    BAD_GPA = -3
    """Not the start of a page of RAM, or not the page that the record holds."""
    EXCLUDED = -4
    """The page never travels."""
    NOT_IN_ROUND = -5
    """The page is not in this round, or was already sent in it."""
    WRONG_STATE = -6
    """No migration is under way that could take this command."""
    STALE = -7
    """The sequence number is 0, older than the last one, or the last one with another command."""
    MALFORMED = -8
    """What lies in IO header and IO page is no record of one page; nothing was opened."""


class Params(msgspec.Struct, frozen=True):
    """The command params, copied out of the mailbox in one go."""

    command: int
    gpa: int
    go: int
    done: int
    ret: int
    request: int
    answered: int

    @classmethod
    def copy(cls, area: memoryview) -> Params:
        """Copy and parse them."""
        command, gpa, _prefetch, ret, go, done, request, answered = _PARAMS.unpack(bytes(area[:PARAMS_SIZE]))
        return cls(command, gpa, go, done, ret, request, answered)


def post(area: memoryview, command: Command, gpa: Gpa, request: int) -> None:
    """Hypervisor: put a request numbered `request` (more than the last one, or the same again) and raise `go`."""
    _FLAG.pack_into(area, _GO_AT, 0)
    _POSTED.pack_into(area, 0, command, gpa, 0, Result.INVALID_FUNCTION, 0, 0, request, 0)
    _FLAG.pack_into(area, _GO_AT, 1)


def watched(area: memoryview) -> bool:
    """Hypervisor: whether the handler sees what was posted without being rung for."""
    with _BARRIER:
        pass
    return area[_WATCHED_AT] == 1


def is_done(area: memoryview) -> bool:
    """Hypervisor: whether `done` is set, of whichever request."""
    return area[_DONE_AT] == 1


def is_posted(area: memoryview) -> bool:
    """Handler: whether `go` is set."""
    return area[_GO_AT] == 1


def watch(area: memoryview) -> None:
    """Handler: no need to ring from now on."""
    area[_WATCHED_AT] = 1


def end_watch(area: memoryview) -> None:
    """Handler: ring again; what was posted before this is seen by looking once more."""
    area[_WATCHED_AT] = 0
    with _BARRIER:
        pass


def answer(area: memoryview, result: Result, request: int) -> None:
    """Handler: answer the request of that number; whatever fills the IO header and page was written before."""
    _RET.pack_into(area, _RET_AT, result)
    _SEQUENCE.pack_into(area, _ANSWERED_AT, request)
    _FLAG.pack_into(area, _GO_AT, 0)
    _FLAG.pack_into(area, _DONE_AT, 1)


def answered(area: memoryview, request: int) -> Result | None:
    """Hypervisor: the answer to request `request`, or None while there is none.

    Raises:
        StreamError: the handler answered with a code nobody knows.
    """
    params = Params.copy(area)
    if params.done != 1 or params.answered != request:
        return None
    if params.ret not in Result.__members__.values():
        raise StreamError(f"the migration handler answered mailbox request {request} with the unknown {params.ret}")
    return Result(params.ret)


def put_record(area: memoryview, record: bytes) -> None:
    """Lay a one-page record over IO header and IO page.

    Raises:
        StreamError: it is not as long as a one-page record.
    """
    if len(record) != _RECORD_SIZE:
        raise StreamError(f"a one-page record is {_RECORD_SIZE} bytes long, not {len(record)}")
    head = record[:_HEAD_SIZE] + record[-TAG_SIZE:]
    _LENGTH.pack_into(area, IO_HEADER, len(head))
    area[IO_HEADER + 4 : IO_HEADER + 4 + len(head)] = head
    area[IO_PAGE:AREA_SIZE] = record[_HEAD_SIZE:-TAG_SIZE]


def copy_record(area: memoryview) -> bytes:
    """Copy IO header and IO page once, and join them to the one-page record they hold.

    Raises:
        StreamError: the header's length is over the RFC's limit or not that of a one-page record.
    """
    copied = bytes(area[IO_HEADER:AREA_SIZE])
    (length,) = _LENGTH.unpack_from(copied)
    if length > MAX_IO_HEADER:
        raise StreamError(f"an IO header of {length} bytes is over the limit of {MAX_IO_HEADER}")
    if length != _HEAD_SIZE + TAG_SIZE:
        raise StreamError(f"an IO header of {length} bytes is not that of a one-page record")
    head = copied[4 : 4 + length]
    return head[:_HEAD_SIZE] + copied[IO_PAGE - IO_HEADER :] + head[_HEAD_SIZE:]
