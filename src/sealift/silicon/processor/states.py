"""State machines of platform and guest, as tables (AMD SEV API, "Platform State Machine", "Guest State Machine").

Platform::

    UNINIT ── INIT ──► INIT ── LAUNCH_START, RECEIVE_START ───► WORKING
                            ◄── DECOMMISSION of the last guest ──
    SHUTDOWN leads from every state to UNINIT.

Guest::

    LAUNCH_START ──► LUPDATE ── LAUNCH_MEASURE ──► LSECRET ── LAUNCH_FINISH ──► RUNNING
    RECEIVE_START ─► RUPDATE ──────────────── RECEIVE_FINISH ────────────────► RUNNING
    RUNNING ── SEND_START ──► SUPDATE ── SEND_FINISH ──► SENT
            ◄── SEND_CANCEL ──

`COMMANDS` says for every command in which states it is allowed and what comes next; commands outside the table are
INVALID_COMMAND. What a command checks besides state is where it is carried out: ``launch``, ``send``, ``receive`` and
their neighbours, which ``firmware`` joins.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from sealift.sev.status import Status, failure


class Command(IntEnum):
    """Firmware commands by their numbers."""

    INIT = 0x01
    SHUTDOWN = 0x02
    PLATFORM_RESET = 0x03
    PLATFORM_STATUS = 0x04
    PEK_GEN = 0x05
    PEK_CSR = 0x06
    PEK_CERT_IMPORT = 0x07
    PDH_CERT_EXPORT = 0x08
    PDH_GEN = 0x09
    DF_FLUSH = 0x0A
    GET_ID = 0x0C
    DECOMMISSION = 0x20
    ACTIVATE = 0x21
    DEACTIVATE = 0x22
    GUEST_STATUS = 0x23
    LAUNCH_START = 0x30
    LAUNCH_UPDATE_DATA = 0x31
    LAUNCH_UPDATE_VMSA = 0x32
    LAUNCH_MEASURE = 0x33
    LAUNCH_SECRET = 0x34
    LAUNCH_FINISH = 0x35
    ATTESTATION = 0x36
    SEND_START = 0x40
    SEND_UPDATE_DATA = 0x41
    SEND_UPDATE_VMSA = 0x42
    SEND_FINISH = 0x43
    SEND_CANCEL = 0x44
    RECEIVE_START = 0x50
    RECEIVE_UPDATE_DATA = 0x51
    RECEIVE_UPDATE_VMSA = 0x52
    RECEIVE_FINISH = 0x53
    DBG_DECRYPT = 0x60
    DBG_ENCRYPT = 0x61


class PlatformState(IntEnum):
    """Where the platform is."""

    UNINIT = 0
    INIT = 1
    WORKING = 2


class GuestState(IntEnum):
    """Where a guest is; UNINIT stands for "no such guest"."""

    UNINIT = 0
    LUPDATE = 1
    LSECRET = 2
    RUNNING = 3
    SUPDATE = 4
    RUPDATE = 5
    SENT = 6


@dataclass(frozen=True, slots=True)
class Rule:
    """When a command is allowed and where it leads.

    Attributes:
        platform: platform states it is allowed in.
        guest: guest states it is allowed in; empty if it addresses no existing guest.
        then: the guest's state afterwards; None if it stays as it is.
        platform_then: the platform's state afterwards; None if it stays, or depends on the guests left.
    """

    platform: frozenset[PlatformState]
    guest: frozenset[GuestState] = frozenset()
    then: GuestState | None = None
    platform_then: PlatformState | None = None


_ANY = frozenset(PlatformState)
_UNINIT = frozenset({PlatformState.UNINIT})
_INIT = frozenset({PlatformState.INIT})
_READY = frozenset({PlatformState.INIT, PlatformState.WORKING})
_WORKING = frozenset({PlatformState.WORKING})
_ALIVE = frozenset(GuestState) - {GuestState.UNINIT}


def _guest(*states: GuestState, then: GuestState | None = None) -> Rule:
    return Rule(_WORKING, frozenset(states), then)


def _birth(state: GuestState) -> Rule:
    return Rule(_READY, then=state, platform_then=PlatformState.WORKING)


COMMANDS: Final[dict[Command, Rule]] = {
    Command.INIT: Rule(_UNINIT, platform_then=PlatformState.INIT),
    Command.SHUTDOWN: Rule(_ANY, platform_then=PlatformState.UNINIT),
    Command.PLATFORM_RESET: Rule(_UNINIT),
    Command.PLATFORM_STATUS: Rule(_ANY),
    Command.PEK_GEN: Rule(_INIT),
    Command.PEK_CSR: Rule(_READY),
    Command.PEK_CERT_IMPORT: Rule(_INIT),
    Command.PDH_CERT_EXPORT: Rule(_READY),
    Command.PDH_GEN: Rule(_READY),
    Command.DF_FLUSH: Rule(_READY),
    Command.GET_ID: Rule(_ANY),
    Command.DECOMMISSION: Rule(_WORKING, _ALIVE, GuestState.UNINIT),
    Command.ACTIVATE: Rule(_WORKING, _ALIVE - {GuestState.SENT}),
    Command.DEACTIVATE: Rule(_WORKING, _ALIVE),
    Command.GUEST_STATUS: Rule(_READY, frozenset(GuestState)),
    Command.LAUNCH_START: _birth(GuestState.LUPDATE),
    Command.LAUNCH_UPDATE_DATA: _guest(GuestState.LUPDATE),
    Command.LAUNCH_UPDATE_VMSA: _guest(GuestState.LUPDATE),
    Command.LAUNCH_MEASURE: _guest(GuestState.LUPDATE, then=GuestState.LSECRET),
    Command.LAUNCH_SECRET: _guest(GuestState.LSECRET),
    Command.LAUNCH_FINISH: _guest(GuestState.LSECRET, then=GuestState.RUNNING),
    Command.ATTESTATION: _guest(GuestState.LSECRET, GuestState.RUNNING, GuestState.SUPDATE, GuestState.SENT),
    Command.SEND_START: _guest(GuestState.RUNNING, then=GuestState.SUPDATE),
    Command.SEND_UPDATE_DATA: _guest(GuestState.SUPDATE),
    Command.SEND_UPDATE_VMSA: _guest(GuestState.SUPDATE),
    Command.SEND_FINISH: _guest(GuestState.SUPDATE, then=GuestState.SENT),
    Command.SEND_CANCEL: _guest(GuestState.SUPDATE, then=GuestState.RUNNING),
    Command.RECEIVE_START: _birth(GuestState.RUPDATE),
    Command.RECEIVE_UPDATE_DATA: _guest(GuestState.RUPDATE),
    Command.RECEIVE_UPDATE_VMSA: _guest(GuestState.RUPDATE),
    Command.RECEIVE_FINISH: _guest(GuestState.RUPDATE, then=GuestState.RUNNING),
    Command.DBG_DECRYPT: Rule(_WORKING, _ALIVE),
    Command.DBG_ENCRYPT: Rule(_WORKING, _ALIVE),
}


def require_platform(command: Command, state: PlatformState) -> None:
    """Demand that the platform is in a state `command` is allowed in.

    Raises:
        FirmwareError: INVALID_PLATFORM_STATE, saying which states would do.
    """
    allowed = COMMANDS[command].platform
    if state not in allowed:
        detail = f"{command.name} is for a platform in state {_names(allowed)}, not {state.name}"
        raise failure(Status.INVALID_PLATFORM_STATE, detail)


def require_guest(command: Command, state: GuestState) -> None:
    """Demand that the guest is in a state `command` is allowed in.

    Raises:
        FirmwareError: INVALID_GUEST_STATE, saying which states would do.
    """
    allowed = COMMANDS[command].guest
    if state not in allowed:
        detail = f"{command.name} is for a guest in state {_names(allowed)}, not {state.name}"
        raise failure(Status.INVALID_GUEST_STATE, detail)


def _names(states: frozenset[PlatformState] | frozenset[GuestState]) -> str:
    return " or ".join(state.name for state in sorted(states))
