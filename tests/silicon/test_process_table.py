"""The platform's table of requests and phases, request by request, over the real process."""

from __future__ import annotations

import pytest

from sealift.errors import SealiftError
from sealift.wire import handler
from sealift.wire import platform as wire
from sealift.wire.platform import Phase
from sealift.wire.token import TokenKind

from .hosts import (
    RECIPE,
    Host,
    Hosts,
    exchange_keys,
    hand_token,
    migrating,
    receive_start,
    send_end,
    send_start,
    sendable,
)

ALLOWED = """
                   empty created launching running sending incoming receiving stopped fenced gone  plain
GetPlatformInfo      x      x        x        x       x       x         x        x      x     x      x
PdhCertExport        x      x        x        x       x       x         x        x      x     x      x
GetGuestStatus       x      x        x        x       x       x         x        x      x     x      x
CreateVm             x      -        -        -       -       -         -        -      -     -      -
CreateVcpu           -      x        x        -       -       -         -        -      -     -      x
LaunchStart          -      x        -        -       -       -         -        -      -     -      -
LaunchUpdateData     -      -        x        -       -       -         -        -      -     -      -
LaunchFinish         -      -        x        -       -       -         -        -      -     -      -
LaunchMeasure        -      -        x        -       -       -         -        -      -     -      -
LaunchSecret         -      -        x        -       -       -         -        -      -     -      -
GetRegisters         -      x        x        x       x       -         -        x      -     -      x
SetRegisters         -      x        x        x       x       -         -        -      -     -      x
Kick                 -      x        x        x       x       x         x        x      x     x      x
ConnectInterrupt     -      x        -        -       -       -         -        -      -     -      -
GetChips             -      -        -        x       x       -         -        x      -     -      -
SetChips             -      -        -        -       -       x         x        -      -     -      -
GetSharedDirtyLog    -      x        x        x       x       x         x        x      x     x      x
StartWriteMeter      -      -        -        x       x       -         -        -      -     -      x
ReadWriteMeter       -      x        x        x       x       x         x        x      x     x      x
StopWriteMeter       -      x        x        x       x       x         x        x      x     x      x
CountPopulated       -      x        x        x       x       x         x        x      x     x      x
JudgeGuest           x      x        x        x       x       x         x        x      x     x      x
GetPageStates        -      x        x        x       x       x         x        x      x     x      x
ReadHostView         -      x        x        x       x       x         x        x      x     x      -
WriteHostView        -      -        -        x       x       -         -        -      -     -      -
OpenPackets          -      x        x        x       x       x         x        x      x     x      -
SendStart            -      -        -        x       -       -         -        -      -     -      -
GetPrivateDirtyLog   -      -        -        -       x       -         -        -      -     -      -
SendUpdateData       -      -        -        -       x       -         -        -      -     -      -
SendUpdateVmsa       -      -        -        -       x       -         -        -      -     -      -
SealStream           -      -        -        -       x       -         -        -      -     -      -
SendFinish           -      -        -        -       x       -         -        -      -     -      -
SendCancel           -      -        -        -       x       -         -        -      -     -      -
ReceiveStart         -      x        -        -       -       -         -        -      -     -      -
ReceiveUpdateData    -      -        -        -       -       -         x        -      -     -      -
ReceiveUpdateVmsa    -      -        -        -       -       -         x        -      -     -      -
CheckStream          -      -        -        -       -       -         x        -      -     -      -
ReceiveFinish        -      -        -        -       -       -         x        -      -     -      -
SetPageStates        -      -        -        -       -       -         x        -      -     -      -
GetVmState           -      -        -        -       x       -         -        -      -     -      x
SetVmState           -      -        -        -       -       -         x        -      -     -      x
GetVcpuState         -      -        -        -       x       -         -        -      -     -      x
SetVcpuState         -      -        -        -       -       -         x        -      -     -      x
GetPlatformStatus    x      x        x        x       x       x         x        x      x     x      x
GetId                x      x        x        x       x       x         x        x      x     x      x
PlatformReset        x      x        x        x       x       x         x        x      x     x      x
PekGen               x      x        x        x       x       x         x        x      x     x      x
PekCsr               x      x        x        x       x       x         x        x      x     x      x
PekCertImport        x      x        x        x       x       x         x        x      x     x      x
PdhGen               x      x        x        x       x       x         x        x      x     x      x
GetAttestation       -      -        x        x       x       x         x        x      x     x      -
LaunchUpdateVmsa     -      -        x        -       -       -         -        -      -     -      -
OpenHandler          -      -        -        x       x       x         x        x      x     x      -
OpenDebugWindow      -      x        x        x       x       x         x        x      x     x      -
DbgDecrypt           -      -        -        x       x       -         -        x      -     -      -
DbgEncrypt           -      -        -        x       x       -         -        -      -     -      -
DbgDecryptVmsa       -      -        -        x       x       -         -        x      -     -      -
DbgEncryptVmsa       -      -        -        x       x       -         -        -      -     -      -
InvalidateCode       -      -        -        -       -       -         -        -      -     -      x
GetSystemRegisters   -      x        x        x       x       -         -        x      -     -      x
Run                  -      -        -        x       x       -         -        -      -     -      x
"""
"""What an owner would want: where the guest runs, and only there, can the host write its memory."""

LEADS_ON = {
    "SendFinish": (Phase.SENDING, Phase.GONE),
    "SendCancel": (Phase.SENDING, Phase.RUNNING),
    "ReceiveFinish": (Phase.RECEIVING, Phase.RUNNING),
}
"""Requests that need nothing but their phase, and where they lead."""

_SOME_REGISTERS = wire.Registers((), 0, 0, 0, 0, 0, 0, 0)

SAMPLES: dict[str, wire.Message] = {
    type(message).__name__: message
    for message in (
        wire.GetPlatformInfo(),
        wire.PdhCertExport(),
        wire.GetGuestStatus(),
        wire.GetPlatformStatus(),
        wire.GetId(),
        wire.PlatformReset(),
        wire.PekGen(),
        wire.PekCsr(),
        wire.PekCertImport(b"no certificate", b"no certificate"),
        wire.PdhGen(),
        wire.GetAttestation(bytes(16)),
        wire.CreateVm((), 1),
        wire.CreateVcpu(9),
        wire.LaunchStart(0, b"no certificate", b"no session"),
        wire.LaunchUpdateData(0, 0),
        wire.LaunchUpdateVmsa(0, b"no page"),
        wire.LaunchFinish(),
        wire.LaunchMeasure(),
        wire.LaunchSecret(b"no header", b"no payload", 0),
        wire.GetRegisters(0),
        wire.SetRegisters(0, _SOME_REGISTERS),
        wire.Kick(0),
        wire.ConnectInterrupt(0),
        wire.GetChips(),
        wire.SetChips(b""),
        wire.GetSharedDirtyLog(),
        wire.StartWriteMeter(),
        wire.ReadWriteMeter(),
        wire.StopWriteMeter(),
        wire.CountPopulated(),
        wire.JudgeGuest("unicorn", 1 << 20, 1, irqchip=False, es=False, cbit=0, cpu=b""),
        wire.GetPageStates(),
        wire.ReadHostView(0, 0),
        wire.WriteHostView(0, 0),
        wire.OpenPackets(),
        wire.SendStart(b"no PDH", b"", b""),
        wire.GetPrivateDirtyLog(),
        wire.SendUpdateData(0, 0, 0),
        wire.SendUpdateVmsa(9, 0),
        wire.SealStream(bytes(32)),
        wire.SendFinish(),
        wire.SendCancel(),
        wire.ReceiveStart(0, b"no PDH", b"no session"),
        wire.ReceiveUpdateData(0, 0, 0, 0),
        wire.ReceiveUpdateVmsa(9, 0, 0, 0),
        wire.CheckStream(bytes(32), bytes(32)),
        wire.ReceiveFinish(),
        wire.SetPageStates(),
        wire.GetVmState(),
        wire.SetVmState("", b""),
        wire.GetVcpuState(9),
        wire.SetVcpuState(9, b""),
        wire.OpenHandler(),
        wire.OpenDebugWindow(),
        wire.DbgDecrypt(0, 0),
        wire.DbgEncrypt(0, 0),
        wire.DbgDecryptVmsa(9),
        wire.DbgEncryptVmsa(9),
        wire.InvalidateCode(0, 0),
        wire.GetSystemRegisters(9),
    )
}
"""One request of each kind, in the order of the table; none but `LEADS_ON` leads to another phase (LaunchFinish comes
too early)."""


def table() -> dict[tuple[str, Phase], bool]:
    header, *rows = ALLOWED.strip().splitlines()
    phases = [Phase(name) for name in header.split()]
    cells: dict[tuple[str, Phase], bool] = {}
    for row in rows:
        name, *marks = row.split()
        cells |= {(name, phase): mark == "x" for phase, mark in zip(phases, marks, strict=True)}
    return cells


def bring_to(phase: Phase, hosts: Hosts) -> Host:
    """A host in that phase."""
    if phase in (Phase.EMPTY, Phase.CREATED, Phase.LAUNCHING):
        host = hosts.start()
        if phase is not Phase.EMPTY:
            host.create(RECIPE.layout)
        if phase is Phase.LAUNCHING:
            host.start_launch()
        return host
    if phase is Phase.PLAIN:
        host = hosts.start()
        host.create(RECIPE.layout, plain=True)
        return host
    if phase in (Phase.SENDING, Phase.RECEIVING):
        return moved_by_processors(phase, hosts)
    return moved_by_handlers(phase, hosts)


def moved_by_handlers(phase: Phase, hosts: Hosts) -> Host:
    """The source or the target of a migration between handlers."""
    source, target = migrating(hosts)
    if phase is Phase.RUNNING:
        return source
    exchange_keys(source, target)
    if phase is Phase.INCOMING:
        return target
    send_end(source, target)
    if phase is Phase.STOPPED:
        return source
    hand_token(target, source, TokenKind.PREPARED)
    hand_token(source, target, TokenKind.FINAL)
    if phase is Phase.FENCED:
        return source
    hand_token(target, source, TokenKind.STARTED)
    return source


def moved_by_processors(phase: Phase, hosts: Hosts) -> Host:
    """The source or the target of a migration between secure processors."""
    source, target = sendable(hosts)
    started = send_start(source, target)
    if phase is Phase.SENDING:
        return source
    receive_start(source, target, started)
    return target


def refused_for_its_phase(host: Host, name: str, phase: Phase) -> bool:
    """Make the request; whether the phase is why it failed (other failures do not count)."""
    try:
        host.platform.request(SAMPLES[name], wire.Message)
    except SealiftError as error:
        return f"not possible while the VM is {phase.value}" in str(error)
    return False


def test_the_table_names_every_request_and_every_phase() -> None:
    assert set(SAMPLES) | {"Run"} == {name for name, _ in table()} == {request.__name__ for request in wire.ALLOWED}
    assert {phase for _, phase in table()} == set(Phase)


@pytest.mark.attack("requests", "makes every request in every state", gains="nothing")
@pytest.mark.parametrize("phase", Phase)
def test_every_request_is_possible_in_its_phases_and_in_no_other(hosts: Hosts, phase: Phase) -> None:
    host = bring_to(phase, hosts)
    assert host.platform.status().phase is phase
    ends = {name for name, (where, _) in LEADS_ON.items() if where is phase}
    expected = {name: cell for (name, where), cell in table().items() if where is phase and name not in ends | {"Run"}}
    found = {name: not refused_for_its_phase(host, name, phase) for name in SAMPLES if name not in ends}
    assert found == expected
    assert host.platform.status().phase is phase


@pytest.mark.parametrize("name", LEADS_ON)
def test_what_ends_a_phase_leads_to_the_next(hosts: Hosts, name: str) -> None:
    here, there = LEADS_ON[name]
    host = bring_to(here, hosts)
    host.platform.do(SAMPLES[name])
    assert host.platform.status().phase is there


@pytest.mark.attack("requests", "runs a vCPU in every state", gains="nothing")
@pytest.mark.parametrize("phase", [phase for phase in Phase if phase is not Phase.EMPTY])
def test_a_vcpu_runs_in_its_phase_and_in_no_other(hosts: Hosts, phase: Phase) -> None:
    """The kick makes a Run that is allowed come back at once."""
    host = bring_to(phase, hosts)
    host.platform.do(wire.Kick(0))
    answer = host.run()
    if table()["Run", phase]:
        assert answer == wire.Interrupted()
    else:
        assert isinstance(answer, wire.Failed)
        assert f"a VM that is {phase.value} cannot be run" in answer.reason


def test_a_target_runs_once_it_has_started_and_not_before(hosts: Hosts) -> None:
    source, target = migrating(hosts)
    assert source.handler is not None
    assert target.handler is not None
    exchange_keys(source, target)
    send_end(source, target)
    target.platform.do(wire.Kick(0))
    assert isinstance(target.run(), wire.Failed)
    hand_token(target, source, TokenKind.PREPARED)
    hand_token(source, target, TokenKind.FINAL)
    assert isinstance(target.run(), wire.Failed)
    target.handler.fetch(TokenKind.STARTED)
    target.platform.do(wire.Kick(0))
    assert target.run() == wire.Interrupted()


# --- the bar in front of guest mode ---------------------------------------------------------------------------------


def test_a_guest_that_was_stopped_runs_again_after_cancel(hosts: Hosts) -> None:
    source, target = migrating(hosts)
    assert source.handler is not None
    exchange_keys(source, target)
    send_end(source, target)
    source.handler.do(handler.Cancel())
    source.platform.do(wire.Kick(0))
    assert source.run() == wire.Interrupted()


def test_a_new_offer_ends_the_stop_like_a_cancel(hosts: Hosts) -> None:
    source, target = migrating(hosts)
    assert source.handler is not None
    exchange_keys(source, target)
    send_end(source, target)
    source.handler.blob(handler.Offer(1))
    source.platform.do(wire.Kick(0))
    assert source.run() == wire.Interrupted()


@pytest.mark.attack("requests", "has the last round sealed while a vCPU is in the guest", gains="nothing")
def test_a_stop_is_refused_while_a_vcpu_is_in_guest_mode_and_leaves_it_there(hosts: Hosts) -> None:
    """It waits in a port access, which counts: the instruction is not complete."""
    source, target = migrating(hosts)
    assert source.handler is not None
    assert source.vcpu is not None
    exchange_keys(source, target)
    entry = RECIPE.entry(0)
    assert entry is not None
    general = (0,) * 16
    registers = wire.Registers(general, entry.rip, 2, entry.cr0, 0, entry.cr3, entry.cr4, entry.efer)
    source.platform.do(wire.SetRegisters(0, registers))
    answer = source.run()
    while not isinstance(answer, wire.PortOut | wire.PortIn):
        answer = source.run()
    with pytest.raises(SealiftError, match="in guest mode"):
        source.handler.do(handler.Stop())
    with pytest.raises(SealiftError, match="in guest mode"):
        source.platform.registers(0)
    source.vcpu.send(wire.Run(immediate_exit=True))
    assert source.vcpu.receive() == wire.Interrupted()
    source.handler.do(handler.Stop())
    assert isinstance(source.run(), wire.Failed)


def test_a_receiver_that_was_offered_rubbish_is_as_it_was(hosts: Hosts) -> None:
    source, target = migrating(hosts)
    assert target.handler is not None
    with pytest.raises(SealiftError):
        target.handler.blob(handler.Answer(b"rubbish"))
    target.platform.do(wire.Kick(0))
    assert target.run() == wire.Interrupted()
    exchange_keys(source, target)
    assert isinstance(target.run(), wire.Failed)
