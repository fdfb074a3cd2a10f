"""The table of requests and phases, and the unions of what goes over the control socket."""

from __future__ import annotations

from typing import TypeAlias

from sealift.wire.platform.debug import (
    DbgDecrypt,
    DbgDecryptVmsa,
    DbgEncrypt,
    DbgEncryptVmsa,
    DebugWindow,
    GetSystemRegisters,
    InvalidateCode,
    OpenDebugWindow,
    VcpuSystemRegisters,
)
from sealift.wire.platform.firmware import (
    AttestationReport,
    GetAttestation,
    GetGuestStatus,
    GetId,
    GetPlatformInfo,
    GetPlatformStatus,
    GuestStatus,
    LaunchFinish,
    LaunchMeasure,
    LaunchSecret,
    LaunchStart,
    LaunchUpdateData,
    LaunchUpdateVmsa,
    Measurement,
    PdhCertExport,
    PdhCertificates,
    PdhGen,
    PekCertImport,
    PekCsr,
    PekGen,
    PekRequest,
    PlatformId,
    PlatformInfo,
    PlatformReset,
    PlatformStatus,
)
from sealift.wire.platform.machine import (
    Chips,
    ConnectInterrupt,
    Count,
    CountPopulated,
    CreateVcpu,
    CreateVm,
    GetChips,
    GetPageStates,
    GetRegisters,
    GetSharedDirtyLog,
    HandlerOpened,
    Judged,
    JudgeGuest,
    Kick,
    OpenHandler,
    ReadHostView,
    ReadWriteMeter,
    SetChips,
    SetRegisters,
    StartWriteMeter,
    StopWriteMeter,
    VcpuRegisters,
    VmCreated,
    WriteHostView,
    WritesMetered,
)
from sealift.wire.platform.message import Done, Failed, Message
from sealift.wire.platform.phase import Phase
from sealift.wire.platform.transfer import (
    CheckStream,
    GetPrivateDirtyLog,
    GetVcpuState,
    GetVmState,
    OpenPackets,
    PacketSent,
    PacketsOpened,
    ReceiveFinish,
    ReceiveStart,
    ReceiveUpdateData,
    ReceiveUpdateVmsa,
    SealStream,
    SendCancel,
    SendFinish,
    SendStart,
    SendStarted,
    SendUpdateData,
    SendUpdateVmsa,
    SetPageStates,
    SetVcpuState,
    SetVmState,
    StreamSealed,
    VcpuState,
    VmState,
)
from sealift.wire.platform.vcpu import Run

Request: TypeAlias = (
    CreateVm
    | CreateVcpu
    | GetRegisters
    | SetRegisters
    | Kick
    | ConnectInterrupt
    | GetChips
    | SetChips
    | GetSharedDirtyLog
    | StartWriteMeter
    | ReadWriteMeter
    | StopWriteMeter
    | CountPopulated
    | JudgeGuest
    | GetPageStates
    | ReadHostView
    | WriteHostView
    | GetPlatformInfo
    | PdhCertExport
    | LaunchStart
    | LaunchUpdateData
    | LaunchUpdateVmsa
    | LaunchMeasure
    | LaunchSecret
    | LaunchFinish
    | GetGuestStatus
    | GetAttestation
    | GetPlatformStatus
    | PlatformReset
    | PekGen
    | PekCsr
    | PekCertImport
    | PdhGen
    | GetId
    | OpenPackets
    | SendStart
    | GetPrivateDirtyLog
    | SendUpdateData
    | SendUpdateVmsa
    | SealStream
    | SendFinish
    | SendCancel
    | ReceiveStart
    | ReceiveUpdateData
    | ReceiveUpdateVmsa
    | CheckStream
    | ReceiveFinish
    | SetPageStates
    | GetVmState
    | SetVmState
    | GetVcpuState
    | SetVcpuState
    | OpenHandler
    | OpenDebugWindow
    | DbgDecrypt
    | DbgEncrypt
    | DbgDecryptVmsa
    | DbgEncryptVmsa
    | InvalidateCode
    | GetSystemRegisters
)

Reply: TypeAlias = (
    VmCreated
    | VcpuRegisters
    | Chips
    | Count
    | WritesMetered
    | Judged
    | PlatformInfo
    | PdhCertificates
    | Measurement
    | GuestStatus
    | AttestationReport
    | PlatformStatus
    | PekRequest
    | PlatformId
    | PacketsOpened
    | SendStarted
    | PacketSent
    | StreamSealed
    | VmState
    | VcpuState
    | HandlerOpened
    | DebugWindow
    | VcpuSystemRegisters
    | Done
    | Failed
)


_ANY = frozenset(Phase)
_BEFORE = frozenset({Phase.EMPTY})
_MADE = _ANY - _BEFORE
_SETUP = frozenset({Phase.CREATED, Phase.LAUNCHING})
_LAUNCHING = frozenset({Phase.LAUNCHING})
_RUNNING = frozenset({Phase.RUNNING, Phase.SENDING})
_PLAIN = frozenset({Phase.PLAIN})
_SENDING = frozenset({Phase.SENDING})
_RECEIVING = frozenset({Phase.RECEIVING})
_ALIVE = _RUNNING | {Phase.STOPPED}

# What concerns the platform as such is judged by the firmware's own states.
ALLOWED: dict[type[Message], frozenset[Phase]] = {
    GetPlatformInfo: _ANY,
    PdhCertExport: _ANY,
    GetGuestStatus: _ANY,
    GetAttestation: _MADE - {Phase.CREATED} - _PLAIN,
    GetPlatformStatus: _ANY,
    PlatformReset: _ANY,
    PekGen: _ANY,
    PekCsr: _ANY,
    PekCertImport: _ANY,
    PdhGen: _ANY,
    GetId: _ANY,
    CreateVm: _BEFORE,
    CreateVcpu: _SETUP | _PLAIN,
    LaunchStart: frozenset({Phase.CREATED}),
    LaunchUpdateData: _LAUNCHING,
    LaunchUpdateVmsa: _LAUNCHING,
    LaunchMeasure: _LAUNCHING,
    LaunchSecret: _LAUNCHING,
    LaunchFinish: _LAUNCHING,
    GetRegisters: _SETUP | _ALIVE | _PLAIN,
    SetRegisters: _SETUP | _RUNNING | _PLAIN,
    Kick: _MADE,
    ConnectInterrupt: frozenset({Phase.CREATED}),
    GetChips: _ALIVE,
    SetChips: _RECEIVING | {Phase.INCOMING},
    GetSharedDirtyLog: _MADE,
    StartWriteMeter: _RUNNING | _PLAIN,
    ReadWriteMeter: _MADE,
    StopWriteMeter: _MADE,
    CountPopulated: _MADE,
    JudgeGuest: _ANY,
    GetPageStates: _MADE,
    ReadHostView: _MADE - _PLAIN,
    WriteHostView: _RUNNING,
    OpenPackets: _MADE - _PLAIN,
    SendStart: frozenset({Phase.RUNNING}),
    GetPrivateDirtyLog: _SENDING,
    SendUpdateData: _SENDING,
    SendUpdateVmsa: _SENDING,
    SealStream: _SENDING,
    SendFinish: _SENDING,
    SendCancel: _SENDING,
    ReceiveStart: frozenset({Phase.CREATED}),
    ReceiveUpdateData: _RECEIVING,
    ReceiveUpdateVmsa: _RECEIVING,
    CheckStream: _RECEIVING,
    ReceiveFinish: _RECEIVING,
    SetPageStates: _RECEIVING,
    GetVmState: _SENDING | _PLAIN,
    SetVmState: _RECEIVING | _PLAIN,
    GetVcpuState: _SENDING | _PLAIN,
    SetVcpuState: _RECEIVING | _PLAIN,
    OpenHandler: _MADE - _SETUP - _PLAIN,
    # In a guest that has been launched: before, the owner's secret still holds the migration key.
    OpenDebugWindow: _MADE - _PLAIN,
    DbgDecrypt: _ALIVE,
    DbgEncrypt: _RUNNING,
    DbgDecryptVmsa: _ALIVE,
    DbgEncryptVmsa: _RUNNING,
    InvalidateCode: _PLAIN,
    GetSystemRegisters: _SETUP | _ALIVE | _PLAIN,
    Run: _RUNNING | _PLAIN,
}
"""For every request the phases in which it may be made; a request that is missing here is never allowed."""
