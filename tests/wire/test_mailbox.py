"""The hypervisor's end of the mailbox."""

from __future__ import annotations

import os

import pytest

from sealift.address import Gpa
from sealift.errors import StreamError
from sealift.wire.mailbox import (
    AREA_SIZE,
    IO_HEADER,
    IO_PAGE,
    Command,
    Params,
    Result,
    answer,
    answered,
    copy_record,
    post,
    put_record,
)
from sealift.wire.record import page_record_size


def area() -> memoryview:
    return memoryview(bytearray(AREA_SIZE))


def test_a_record_laid_over_header_and_page_comes_back_whole() -> None:
    mailbox, record = area(), os.urandom(page_record_size(1))
    put_record(mailbox, record)
    assert copy_record(mailbox) == record
    assert bytes(mailbox[IO_PAGE:]) == record[64:-16]
    assert int.from_bytes(mailbox[IO_HEADER : IO_HEADER + 4], "little") == 80


def test_a_record_of_another_size_is_not_laid_out() -> None:
    with pytest.raises(StreamError, match="one-page record"):
        put_record(area(), bytes(page_record_size(2)))


def test_an_answer_is_told_from_a_stale_one_by_its_number() -> None:
    mailbox = area()
    post(mailbox, Command.ENCRYPT, Gpa(0), 1)
    assert answered(mailbox, 1) is None
    answer(mailbox, Result.OK, 1)
    assert answered(mailbox, 1) is Result.OK
    assert answered(mailbox, 2) is None
    assert (Params.copy(mailbox).go, Params.copy(mailbox).done) == (0, 1)


def test_a_new_request_presets_failure_and_clears_done() -> None:
    mailbox = area()
    answer(mailbox, Result.OK, 1)
    post(mailbox, Command.DECRYPT, Gpa(0x5000), 2)
    params = Params.copy(mailbox)
    assert (params.ret, params.go, params.done, params.gpa) == (-1, 1, 0, 0x5000)


def test_an_unknown_answer_is_a_stream_error() -> None:
    mailbox = area()
    post(mailbox, Command.INIT, Gpa(0), 1)
    answer(mailbox, Result.OK, 1)
    mailbox[20] = 77
    with pytest.raises(StreamError, match="unknown 77"):
        answered(mailbox, 1)
