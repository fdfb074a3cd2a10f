"""The mailbox: the RFC's commands, without its defects."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from sealift.address import PAGE_SIZE, Gpa
from sealift.guest.handler.commit import State
from sealift.guest.handler.mailbox import Mailbox
from sealift.guest.handler.sealer import Pull
from sealift.wire.lookout import Lookout
from sealift.wire.mailbox import (
    AREA_SIZE,
    IO_HEADER,
    IO_PAGE,
    Command,
    Params,
    Result,
    answered,
    copy_record,
    post,
    put_record,
    watched,
)
from sealift.wire.record import RecordHeader

from .rig import MAILBOX, SOURCE_FACTS, Hosts, write_some


class Asking:
    """A source in its first round, and its mailbox."""

    def __init__(self) -> None:
        self.hosts = Hosts()
        write_some(self.hosts.guest)
        self.vmm = self.hosts.connect()
        self.hosts.source.begin_epoch()
        self.area = memoryview(bytearray(AREA_SIZE))
        self.mailbox = Mailbox(self.hosts.source, self.area)
        self.number = 0

    def ask(self, command: int, gpa: int = 0, number: int | None = None) -> Result | None:
        """One request; its number is the next one if none is given."""
        if number is None:
            self.number = number = self.number + 1
        post(self.area, command, Gpa(gpa), number)  # type: ignore[arg-type]  # numbers that are no command too
        self.mailbox.serve()
        return answered(self.area, number)


def test_nothing_is_served_unless_asked() -> None:
    asking = Asking()
    assert not asking.mailbox.serve()
    asking.ask(Command.INIT)
    assert not asking.mailbox.serve(), "go was cleared"


def test_a_page_comes_as_the_same_record_the_ring_would_carry() -> None:
    asking = Asking()
    assert asking.ask(Command.ENCRYPT, 10 * PAGE_SIZE) is Result.OK
    record = copy_record(asking.area)
    header = RecordHeader.decode(record)
    assert (header.channel, header.sequence, header.count) == (0, 0, 1)
    slot = bytearray(1 << 16)
    sealed = asking.hosts.source.pull(Pull(0, 1, 1), memoryview(slot))
    assert sealed.length == len(record)
    asking.vmm.deliver([record, bytes(slot[: sealed.length])])
    assert asking.hosts.landed.content(10) == asking.hosts.guest.content(10)


@pytest.mark.attack("requests", "asks the mailbox twice, for two ciphertexts under one nonce", gains="nothing")
def test_the_same_request_again_gives_the_same_bytes_and_seals_nothing() -> None:
    asking = Asking()
    asking.ask(Command.ENCRYPT, 10 * PAGE_SIZE)
    record = copy_record(asking.area)
    asking.area[IO_HEADER:] = bytes(AREA_SIZE - IO_HEADER)
    asking.hosts.guest.write(10, b"changed meanwhile")
    assert asking.ask(Command.ENCRYPT, 10 * PAGE_SIZE, asking.number) is Result.OK
    assert copy_record(asking.area) == record
    asking.ask(Command.ENCRYPT, 11 * PAGE_SIZE)
    assert RecordHeader.decode(copy_record(asking.area)).sequence == 1


def test_after_a_reset_the_kept_ciphertext_is_gone_but_the_migration_is_not() -> None:
    asking = Asking()
    asking.ask(Command.ENCRYPT, 10 * PAGE_SIZE)
    assert asking.ask(Command.RESET) is Result.OK
    assert asking.ask(Command.ENCRYPT, 10 * PAGE_SIZE, 1) is Result.STALE
    assert asking.hosts.source.state is State.SENDING


@pytest.mark.parametrize("number", [0, 1, 2])
def test_an_old_number_or_another_command_under_the_last_one_is_stale(number: int) -> None:
    asking = Asking()
    asking.ask(Command.INIT)
    asking.ask(Command.INIT)
    assert asking.ask(Command.ENCRYPT, 10 * PAGE_SIZE, number) is Result.STALE
    assert asking.ask(Command.ENCRYPT, 10 * PAGE_SIZE) is Result.OK, "the page was not spent"


@pytest.mark.attack(
    "lengths and addresses", "asks the mailbox for pages that are not in RAM, or never travel", gains="nothing"
)
@pytest.mark.parametrize(
    ("gpa", "result"),
    [
        (10 * PAGE_SIZE + 1, Result.BAD_GPA),
        (64 * PAGE_SIZE, Result.BAD_GPA),
        (1 << 51 | 10 * PAGE_SIZE, Result.BAD_GPA),
        ((1 << 64) - PAGE_SIZE, Result.BAD_GPA),
        ((1 << 32) + 32 * PAGE_SIZE, Result.BAD_GPA),
        (MAILBOX[0] * PAGE_SIZE, Result.EXCLUDED),
        (MAILBOX[1] * PAGE_SIZE, Result.EXCLUDED),
        (50 * PAGE_SIZE, Result.NOT_IN_ROUND),
        ((1 << 32) + 26 * PAGE_SIZE, Result.OK),
    ],
)
def test_every_gpa_is_checked_and_an_excluded_page_is_an_error(gpa: int, result: Result) -> None:
    asking = Asking()
    assert asking.ask(Command.ENCRYPT, gpa) is result


def test_a_page_is_sealed_once_a_round() -> None:
    asking = Asking()
    assert asking.ask(Command.ENCRYPT, 10 * PAGE_SIZE) is Result.OK
    assert asking.ask(Command.ENCRYPT, 10 * PAGE_SIZE) is Result.NOT_IN_ROUND


@pytest.mark.parametrize("command", [4, 1 << 63])
def test_an_unknown_command_is_an_invalid_function(command: int) -> None:
    assert Asking().ask(command) is Result.INVALID_FUNCTION


def test_without_a_migration_nothing_is_sealed_or_opened() -> None:
    asking = Asking()
    asking.hosts.source.cancel()
    for command in (Command.INIT, Command.ENCRYPT):
        assert asking.ask(command, 10 * PAGE_SIZE) is Result.WRONG_STATE
    assert asking.ask(Command.RESET) is Result.OK
    idle = Asking()
    idle.hosts.source.cancel()
    idle.area[IO_HEADER:] = bytes(AREA_SIZE - IO_HEADER)
    assert idle.ask(Command.DECRYPT, 10 * PAGE_SIZE) is Result.MALFORMED


class Answering(Asking):
    """The same with the target's mailbox, and a page's record laid into it."""

    def __init__(self) -> None:
        super().__init__()
        self.ask(Command.ENCRYPT, 10 * PAGE_SIZE)
        record = copy_record(self.area)
        self.mailbox = Mailbox(self.hosts.target, self.area)
        self.number = 0
        put_record(self.area, record)


def test_a_page_is_opened_to_its_own_place_alone() -> None:
    answering = Answering()
    assert answering.ask(Command.DECRYPT, 11 * PAGE_SIZE) is Result.BAD_GPA
    assert answering.hosts.target.state is State.RECEIVING
    assert answering.ask(Command.DECRYPT, 10 * PAGE_SIZE) is Result.OK
    assert answering.hosts.landed.content(10) == answering.hosts.guest.content(10)


def test_a_page_opened_twice_under_one_number_is_opened_once() -> None:
    answering = Answering()
    answering.ask(Command.DECRYPT, 10 * PAGE_SIZE)
    answering.area[IO_PAGE:] = os.urandom(PAGE_SIZE)
    assert answering.ask(Command.DECRYPT, 10 * PAGE_SIZE, 1) is Result.OK
    assert answering.hosts.target.state is State.RECEIVING


@pytest.mark.parametrize("place", [IO_PAGE, IO_PAGE + 4095, IO_HEADER + 4 + 79])
def test_an_edited_page_is_an_authentication_error_and_ends_the_target(place: int) -> None:
    answering = Answering()
    answering.area[place] ^= 1
    assert answering.ask(Command.DECRYPT, 10 * PAGE_SIZE) is Result.AUTHENTICATION
    assert answering.hosts.target.state is State.ABORTED
    assert answering.ask(Command.DECRYPT, 10 * PAGE_SIZE) is Result.WRONG_STATE


@pytest.mark.parametrize("length", [0, 79, 81, 1024, 1025, (1 << 32) - 1])
def test_a_header_of_the_wrong_length_is_malformed_and_opens_nothing(length: int) -> None:
    answering = Answering()
    answering.area[IO_HEADER : IO_HEADER + 4] = length.to_bytes(4, "little")
    assert answering.ask(Command.DECRYPT, 10 * PAGE_SIZE) is Result.MALFORMED
    assert answering.hosts.target.state is State.RECEIVING


def test_a_pages_command_is_refused_at_the_wrong_end() -> None:
    answering = Answering()
    assert answering.ask(Command.ENCRYPT, 11 * PAGE_SIZE) is Result.WRONG_STATE
    assert answering.ask(Command.INIT) is Result.OK


def test_the_params_keep_the_rfcs_layout() -> None:
    area = memoryview(bytearray(AREA_SIZE))
    post(area, Command.ENCRYPT, Gpa(0x123000), 7)
    assert bytes(area[:32]) == (
        b"\1" + bytes(7) + b"\0\x30\x12" + bytes(5) + bytes(4) + b"\xff" * 4 + b"\1\0\0\0" + bytes(4)
    )
    assert answered(area, 7) is None
    assert Params.copy(area).request == 7


def test_a_mailbox_is_two_pages() -> None:
    hosts = Hosts()
    with pytest.raises(ValueError, match="8192 bytes"):
        Mailbox(hosts.source, memoryview(bytearray(PAGE_SIZE)))
    assert SOURCE_FACTS.mailbox_gpa == MAILBOX[0] * PAGE_SIZE


class LooksAway(Lookout):
    """A lookout that sees nothing; meanwhile something happens."""

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        super().__init__(0)
        self.meanwhile = meanwhile

    def sees(self, there: Callable[[], bool]) -> bool:
        """It is always the moment before."""
        found = there()
        self.meanwhile()
        return found


def test_whoever_looks_at_the_mailbox_says_so_and_takes_it_back_before_it_sleeps() -> None:
    asking = Asking()
    said: list[bool] = []
    assert not asking.mailbox.comes(LooksAway(lambda: said.append(watched(asking.area))))
    assert said == [True]
    assert not watched(asking.area)


def test_a_request_that_is_posted_while_the_handler_looks_away_is_not_lost() -> None:
    """Its sender saw that somebody looks, and rang for nobody."""
    asking = Asking()
    assert asking.mailbox.comes(LooksAway(lambda: post(asking.area, Command.INIT, Gpa(0), 1)))
    assert asking.mailbox.serve()
    assert answered(asking.area, 1) is Result.OK
