"""Every command in every state of platform and guest, against tables written from AMD's text and not from the code.

Sources: AMD SEV API 0.24, "Platform State Machine" and "Guest State Machine"; AMD's firmware 1.55 where they differ.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sealift.sev.policy import Policy
from sealift.sev.status import Status
from sealift.silicon.processor.states import Command, GuestState, PlatformState

from .bench import Bench

PLATFORM = """
    command              UNINIT   INIT     WORKING
    INIT                 INIT     -        -
    SHUTDOWN             UNINIT   UNINIT   UNINIT
    PLATFORM_RESET       =        -        -
    PLATFORM_STATUS      =        =        =
    PEK_GEN              -        =        -
    PEK_CSR              -        =        =
    PEK_CERT_IMPORT      -        =        -
    PDH_CERT_EXPORT      -        =        =
    PDH_GEN              -        =        =
    DF_FLUSH             -        =        =
    GET_ID               =        =        =
    GUEST_STATUS         -        =        =
    LAUNCH_START         -        WORKING  WORKING
    RECEIVE_START        -        WORKING  WORKING
    DECOMMISSION         -        -        INIT
    ACTIVATE             -        -        =
    DEACTIVATE           -        -        =
    LAUNCH_UPDATE_DATA   -        -        =
    LAUNCH_UPDATE_VMSA   -        -        =
    LAUNCH_MEASURE       -        -        =
    LAUNCH_SECRET        -        -        =
    LAUNCH_FINISH        -        -        =
    ATTESTATION          -        -        =
    SEND_START           -        -        =
    SEND_UPDATE_DATA     -        -        =
    SEND_UPDATE_VMSA     -        -        =
    SEND_FINISH          -        -        =
    SEND_CANCEL          -        -        =
    RECEIVE_UPDATE_DATA  -        -        =
    RECEIVE_UPDATE_VMSA  -        -        =
    RECEIVE_FINISH       -        -        =
    DBG_DECRYPT          -        -        =
    DBG_ENCRYPT          -        -        =
"""
"""The platform's state after a command (``=`` as before), or ``-`` where it is INVALID_PLATFORM_STATE."""

GUEST = """
    command              LUPDATE  LSECRET  RUNNING  SUPDATE  RUPDATE  SENT
    LAUNCH_UPDATE_DATA   =        -        -        -        -        -
    LAUNCH_UPDATE_VMSA   =        -        -        -        -        -
    LAUNCH_MEASURE       LSECRET  -        -        -        -        -
    LAUNCH_SECRET        -        =        -        -        -        -
    LAUNCH_FINISH        -        RUNNING  -        -        -        -
    ATTESTATION          -        =        =        =        -        =
    SEND_START           -        -        SUPDATE  -        -        -
    SEND_UPDATE_DATA     -        -        -        =        -        -
    SEND_UPDATE_VMSA     -        -        -        =        -        -
    SEND_FINISH          -        -        -        SENT     -        -
    SEND_CANCEL          -        -        -        RUNNING  -        -
    RECEIVE_UPDATE_DATA  -        -        -        -        =        -
    RECEIVE_UPDATE_VMSA  -        -        -        -        =        -
    RECEIVE_FINISH       -        -        -        -        RUNNING  -
    DECOMMISSION         gone     gone     gone     gone     gone     gone
    ACTIVATE             =        =        =        =        =        -
    DEACTIVATE           =        =        =        =        =        =
    GUEST_STATUS         =        =        =        =        =        =
    DBG_DECRYPT          =        =        =        =        =        =
    DBG_ENCRYPT          =        =        =        =        =        =
"""
"""The guest's state after a command (``=`` as before), or ``-`` where it is INVALID_GUEST_STATE."""


def _cells(table: str) -> dict[tuple[str, str], str]:
    head, *rows = (line.split() for line in table.strip().splitlines())
    return {(row[0], column): cell for row in rows for column, cell in zip(head[1:], row[1:], strict=True)}


PLATFORM_CELLS, GUEST_CELLS = _cells(PLATFORM), _cells(GUEST)
INACTIVE = {Command.DECOMMISSION, Command.ACTIVATE}
"""Commands for guests without an ASID."""
KEYS_WIPED = {Command.LAUNCH_FINISH, Command.SEND_FINISH, Command.SEND_CANCEL, Command.RECEIVE_FINISH}


def test_the_tables_know_every_command() -> None:
    assert {row for row, _ in PLATFORM_CELLS} == {command.name for command in Command}
    assert {column for _, column in PLATFORM_CELLS} == {state.name for state in PlatformState}
    assert {column for _, column in GUEST_CELLS} == {state.name for state in GuestState} - {"UNINIT"}


@pytest.mark.parametrize("command", Command, ids=lambda command: command.name)
def test_a_command_in_every_state_of_the_platform(make: Callable[[], Bench], command: Command) -> None:
    for state in PlatformState:
        bench = make()
        guest = next(
            (GuestState[column] for (row, column), cell in GUEST_CELLS.items() if row == command.name and cell != "-"),
            GuestState.RUNNING,
        )
        arguments = bench.arguments(command)
        if command in INACTIVE:
            bench.guest.asid = None
            bench.processor._asids._owned.clear()
        bench.put(state, guest)
        expected = PLATFORM_CELLS[command.name, state.name]
        status = bench.call(command, arguments)
        assert status is (Status.INVALID_PLATFORM_STATE if expected == "-" else Status.SUCCESS), state
        after = state if expected in "-=" else PlatformState[expected]
        assert bench.processor.platform_status().state is after


@pytest.mark.parametrize("command", sorted({row for row, _ in GUEST_CELLS}))
def test_a_command_in_every_state_of_the_guest(make: Callable[[], Bench], command: str) -> None:
    for state in set(GuestState) - {GuestState.UNINIT}:
        bench = make()
        arguments = bench.arguments(Command[command])
        if Command[command] in INACTIVE:
            bench.guest.asid = None
            bench.processor._asids._owned.clear()
        bench.put(PlatformState.WORKING, state)
        expected = GUEST_CELLS[command, state.name]
        status = bench.call(Command[command], arguments)
        assert status is (Status.INVALID_GUEST_STATE if expected == "-" else Status.SUCCESS), state
        if expected == "gone":
            assert bench.handle not in bench.processor._guests
            continue
        assert bench.guest.state is (state if expected in "-=" else GuestState[expected])
        wiped = Command[command] in KEYS_WIPED and expected != "-"
        assert (bench.guest.transport is None) == wiped, "transport keys go with the session, and only then"


@pytest.mark.parametrize(
    "command",
    sorted({row for row, _ in GUEST_CELLS} - {"GUEST_STATUS"}),
)
def test_a_handle_of_nobody_is_an_invalid_guest(make: Callable[[], Bench], command: str) -> None:
    bench = make()
    arguments = bench.arguments(Command[command])
    assert bench.call(Command[command], {**arguments, "handle": bench.handle + 1}) is Status.INVALID_GUEST
    assert bench.call(Command[command], {**arguments, "handle": 0}) is Status.INVALID_GUEST


def test_guest_status_of_nobody_is_uninit(make: Callable[[], Bench]) -> None:
    status = make().processor.guest_status(99)
    assert (status.state, status.policy, status.asid) == (GuestState.UNINIT, Policy(0), 0)


def test_the_platform_works_until_its_last_guest_is_gone(make: Callable[[], Bench]) -> None:
    bench = make()
    processor = bench.processor
    second = processor.launch_start(bench.memory, 0, b"", b"")
    processor.decommission(second)
    assert processor.platform_status().state is PlatformState.WORKING
    processor.deactivate(bench.handle)
    processor.decommission(bench.handle)
    assert processor.platform_status().state is PlatformState.INIT
