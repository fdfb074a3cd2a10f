"""The platform's interface: what a VMM may ask of the process that plays the silicon.

Named after the Linux interfaces it stands in for (``/dev/kvm``, ``/dev/sev``)::

    VMM                                            platform process
     │── request ──────── control socket ────────►│   one reply to every request, in order
     │◄─────────────────── reply or Failed ───────│
     │── Run ──────────── two pages a vCPU ──────►│   enters the guest (see sealift.wire.exits)
     │◄──────────────────────────── an exit ──────│   device access, page state, halt, fault, interrupted
     │── pull, open … ──── handler socket ───────►│   see sealift.wire.handler

Memory is shared by memfds that replies carry; the private plane is not among them. A request that the VM's
`Phase` does not allow fails with a sentence and changes nothing (`ALLOWED` is the table).
"""

from __future__ import annotations

import enum
from typing import Annotated, TypeAlias

import msgspec

from sealift.address import PAGE_SIZE
from sealift.wire.obstacle import Obstacle

CPU_LIMIT = 16 * 1024
"""Bytes of a CPU's description: 256 entries of CPUID, at most 40 bytes each, with room."""

CHIPS_LIMIT = 8 * 1024
"""Bytes of the interrupt controllers' state: three of 520 bytes, timer and clock, with room."""


VM_STATE_LIMIT = 4 * 1024
"""Bytes of a VM's own state: a few flags."""

VCPU_STATE_LIMIT = 64 * 1024
"""Bytes of a vCPU's state: KVM's XSAVE area takes at most some 11 KiB, all MSRs another few."""


class Phase(enum.Enum):
    """Where a VM is in its life, as far as the platform is concerned."""

    EMPTY = "empty"
    """No VM yet."""
    CREATED = "created"
    """RAM exists; no launch has started."""
    LAUNCHING = "launching"
    """LAUNCH_START succeeded; the image is being measured (launch-update, launch-secret)."""
    RUNNING = "running"
    """Launched; vCPUs may run."""
    INCOMING = "incoming"
    """Its handler receives a migration."""
    SENDING = "sending"
    """Its secure processor sends it (SEND_START); vCPUs may run meanwhile."""
    RECEIVING = "receiving"
    """Its secure processor receives it (RECEIVE_START)."""
    STOPPED = "stopped"
    """Its handler has closed the outgoing stream; a cancel leads back to running."""
    FENCED = "fenced"
    """Handed over: only the target's answer (or the owner) decides."""
    GONE = "gone"
    """It runs elsewhere, or will run nowhere."""
    PLAIN = "plain"
    """It is not confidential: the VMM has memory and registers in clear, and runs the vCPUs as it likes."""


class Message(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Base of all messages: the class name is the tag on the wire."""


# --- memory and vCPUs -------------------------------------------------------------------------------------------


class Block(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One RAMBlock: name, first GPA, size in bytes."""

    name: str
    gpa: int
    size: int


class CreateVm(Message, frozen=True):
    """Make the VM. Reply: VmCreated with the shared plane's and the bitmap area's memfds.

    With `prealloc` all of its private memory is touched now, for a guest that is to arrive: what it never wrote is
    given back when it is here. (A guest that is launched so would count every page as written.)
    With `irqchip` it has interrupt controllers, a timer and a clock. A guest that is to arrive brings the position of
    its C-bit and a description of its CPU, which this host must be able to give; `cbit` 0 is this host's own.
    With `es` its policy will ask for SEV-ES, and an engine is taken that hides registers.
    With `plain` it is not confidential: nothing is encrypted or launched, and all of its memory is the shared plane.
    """

    blocks: tuple[Block, ...]
    vcpus: int
    prealloc: bool = False
    irqchip: bool = False
    cbit: Annotated[int, msgspec.Meta(ge=0, lt=64)] = 0
    cpu: Annotated[bytes, msgspec.Meta(max_length=CPU_LIMIT)] = b""
    es: bool = False
    plain: bool = False


class VmCreated(Message, frozen=True):
    """The bitmap area holds one set of RAM pages (sealift.pageset); requests say what they leave there.

    `cpu` describes the CPU that the guest sees, for a host that it may move to; opaque.
    """

    bitmap_bytes: int
    cbit: int
    cpu: bytes


class CreateVcpu(Message, frozen=True):
    """Make vCPU `index`. Reply: Done with the socket and the memory over which it takes Run and answers exits."""

    index: int


class Registers(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """General and control registers of one vCPU, as the VMM of an SEV (not SEV-ES) guest may see and set them.

    `general` holds rax rbx rcx rdx rsi rdi rbp rsp r8..r15, in this order.
    """

    general: tuple[int, ...]
    rip: int
    rflags: int
    cr0: int
    cr2: int
    cr3: int
    cr4: int
    efer: int


class GetRegisters(Message, frozen=True):
    """Reply: VcpuRegisters."""

    index: int


class VcpuRegisters(Message, frozen=True):
    """Answer to GetRegisters."""

    registers: Registers


class SetRegisters(Message, frozen=True):
    """Set them; the vCPU must be out of guest mode."""

    index: int
    registers: Registers


class Kick(Message, frozen=True):
    """Make vCPU `index` leave guest mode soon; its pending Run ends with Interrupted (or what came first)."""

    index: int


class ConnectInterrupt(Message, frozen=True):
    """Reply: Done with an eventfd; each write to it raises an edge on interrupt line `gsi`."""

    gsi: int


class GetChips(Message, frozen=True):
    """State of interrupt controllers, timer and clock; vCPUs are out of guest mode. Reply: Chips."""


class Chips(Message, frozen=True):
    """Opaque, and none of it secret; empty for a machine without any."""

    state: bytes


class SetChips(Message, frozen=True):
    """Load what GetChips gave on another host, into a machine whose guest is arriving."""

    state: Annotated[bytes, msgspec.Meta(max_length=CHIPS_LIMIT)]


class GetSharedDirtyLog(Message, frozen=True):
    """Move the set of shared-plane pages written since the last call to the bitmap area. Reply: Count."""


class StartWriteMeter(Message, frozen=True):
    """Count from now on which pages the guest writes, beside the dirty logs and without touching them."""


class ReadWriteMeter(Message, frozen=True):
    """Reply: WritesMetered. The VMM learns how many pages, which a migration would tell it anyway, and not which."""


class WritesMetered(Message, frozen=True):
    """Pages written on each plane since the meter was started, each counted once."""

    private_pages: int
    shared_pages: int


class StopWriteMeter(Message, frozen=True):
    """Count no more."""


class CountPopulated(Message, frozen=True):
    """Private pages that are no holes: what a migration's first round has. Reply: Count."""


class JudgeGuest(Message, frozen=True):
    """Could a guest of this shape, off an engine of this name, run here? Makes nothing. Reply: Judged.

    `cbit`, `cpu` and `plain` are as in CreateVm.
    """

    engine: str
    ram: int
    vcpus: int
    irqchip: bool
    es: bool
    cbit: Annotated[int, msgspec.Meta(ge=0, lt=64)]
    cpu: Annotated[bytes, msgspec.Meta(max_length=CPU_LIMIT)]
    plain: bool = False


class Judged(Message, frozen=True):
    """Everything that is in the way; empty if it could."""

    obstacles: tuple[Obstacle, ...]


class GetPageStates(Message, frozen=True):
    """Copy the set of pages in shared state to the bitmap area. Reply: Count."""


class ReadHostView(Message, frozen=True):
    """Put on the shared plane what DRAM shows the host for these pages: ciphertext where they are private."""

    first: int
    count: int


class WriteHostView(Message, frozen=True):
    """Take what the host put on the shared plane as new DRAM content: private pages get its decryption."""

    first: int
    count: int


class Count(Message, frozen=True):
    """Pages in the set that was left in the bitmap area."""

    pages: int


# --- secure processor -------------------------------------------------------------------------------------------


class GetPlatformInfo(Message, frozen=True):
    """Reply: PlatformInfo."""


class PlatformInfo(Message, frozen=True):
    """What the platform says of itself; none of it is secret and none of it is proof.

    `cbit` is where guests have the C-bit, `engine` what runs their vCPUs, and `engine_reason` why it is that one,
    `ca_chain` ASK‖ARK as the manufacturer publishes them, `handler_digest` the
    SHA-256 of the handler modules that were loaded.
    """

    api_major: int
    api_minor: int
    build_id: int
    cbit: int
    reduced_phys_bits: int
    engine: str
    engine_reason: str
    handler_digest: bytes
    ca_chain: bytes


class PdhCertExport(Message, frozen=True):
    """Reply: PdhCertificates."""


class PdhCertificates(Message, frozen=True):
    """PDH (2084 bytes) and PEK‖OCA‖CEK (6252 bytes)."""

    pdh: bytes
    cert_chain: bytes


class LaunchStart(Message, frozen=True):
    """LAUNCH_START with the owner's policy, Diffie-Hellman certificate and session blob.

    Without certificate (and session) there is no channel to any owner.
    """

    policy: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
    dh_cert: bytes
    session: bytes


class LaunchUpdateData(Message, frozen=True):
    """LAUNCH_UPDATE_DATA: measure and encrypt what the VMM put on the shared plane at `gpa`."""

    gpa: int
    length: int


class LaunchUpdateVmsa(Message, frozen=True):
    """LAUNCH_UPDATE_VMSA: measure a page of registers, and start vCPU `index` of an SEV-ES guest from it."""

    index: int
    vmsa: Annotated[bytes, msgspec.Meta(max_length=PAGE_SIZE)]


class LaunchMeasure(Message, frozen=True):
    """LAUNCH_MEASURE. Reply: Measurement."""


class Measurement(Message, frozen=True):
    """Measurement (32 bytes) and nonce (16 bytes)."""

    measure: bytes


class LaunchSecret(Message, frozen=True):
    """LAUNCH_SECRET: the owner's packet, to be decrypted to `gpa`."""

    header: bytes
    payload: bytes
    gpa: int


class LaunchFinish(Message, frozen=True):
    """LAUNCH_FINISH: the guest may run; the handler takes its key out of the secret area first."""


class GetGuestStatus(Message, frozen=True):
    """GUEST_STATUS and the VM's phase. Reply: GuestStatus."""


class GuestStatus(Message, frozen=True):
    """State by the SEV API's number, policy, handle; where the VM is in its life, and what the guest lets be known.

    An `aware` guest has asked whether its memory is encrypted; a `ready` one says that it can be migrated. `blocked`
    is everything for which the platform makes no offer to migrate it.
    """

    phase: Phase
    state: int
    policy: int
    handle: int
    aware: bool
    ready: bool
    blocked: tuple[Obstacle, ...] = ()


class GetAttestation(Message, frozen=True):
    """ATTESTATION with the asker's nonce. Reply: AttestationReport."""

    mnonce: Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]


class AttestationReport(Message, frozen=True):
    """The report's 208 bytes, signed by the PEK (sealift.sev.report)."""

    report: bytes


# --- the platform as such ---------------------------------------------------------------------------------------


class GetPlatformStatus(Message, frozen=True):
    """PLATFORM_STATUS. Reply: PlatformStatus."""


class PlatformStatus(Message, frozen=True):
    """State by the SEV API's number, whether an external owner is in, whether SEV-ES is on, guests of this process."""

    api_major: int
    api_minor: int
    build_id: int
    state: int
    owned: bool
    es: bool
    guests: int


class PlatformReset(Message, frozen=True):
    """SHUTDOWN, PLATFORM_RESET and INIT: other keys and no external owner any more; not while a guest exists."""


class PekGen(Message, frozen=True):
    """PEK_GEN: other keys, and no external owner any more."""


class PekCsr(Message, frozen=True):
    """PEK_CSR. Reply: PekRequest."""


class PekRequest(Message, frozen=True):
    """The PEK's certificate (2084 bytes) for an owner to sign."""

    pek: bytes


class PekCertImport(Message, frozen=True):
    """PEK_CERT_IMPORT: let an owner in, by the PEK that it signed and its own certificate."""

    pek: bytes
    oca: bytes


class PdhGen(Message, frozen=True):
    """PDH_GEN: another Diffie-Hellman key; sessions made for the old one open no more."""


class GetId(Message, frozen=True):
    """GET_ID. Reply: PlatformId."""


class PlatformId(Message, frozen=True):
    """What names the chip in the manufacturer's records: 64 bytes a socket."""

    chip_id: bytes


# --- migration between secure processors ------------------------------------------------------------------------


class OpenPackets(Message, frozen=True):
    """Make the slots that packets lie in.

    Reply: PacketsOpened with the outgoing ring (which only the platform can write) and the incoming one. A packet is
    laid out as `sealift.wire.psp` says.
    """


class PacketsOpened(Message, frozen=True):
    """Shape of both rings."""

    slots: int
    slot_size: int


class SendStart(Message, frozen=True):
    """SEND_START for the target with these certificates: PDH, PEK‖OCA‖CEK, ASK‖ARK. Reply: SendStarted.

    From here on the VMM has the private dirty log; every page that is no hole is in it. The guest's own migration
    handler can move it again after SendCancel.
    """

    pdh: bytes
    plat_certs: bytes
    amd_certs: bytes


class SendStarted(Message, frozen=True):
    """The guest's policy and the session for the target's RECEIVE_START."""

    policy: int
    session: bytes


class GetPrivateDirtyLog(Message, frozen=True):
    """Move the set of private-plane pages written since the last call to the bitmap area. Reply: Count."""


class SendUpdateData(Message, frozen=True):
    """SEND_UPDATE_DATA: leave a packet with this guest memory in an outgoing slot. Reply: PacketSent."""

    gpa: int
    length: int
    slot: int


class SendUpdateVmsa(Message, frozen=True):
    """SEND_UPDATE_VMSA: the same with the registers of an SEV-ES guest's vCPU, which is out of guest mode."""

    index: int
    slot: int


class PacketSent(Message, frozen=True):
    """Bytes of the packet."""

    length: int


class SendFinish(Message, frozen=True):
    """SEND_FINISH: the guest can never run here again; every vCPU is out of guest mode."""


class SendCancel(Message, frozen=True):
    """SEND_CANCEL: the guest stays."""


class ReceiveStart(Message, frozen=True):
    """RECEIVE_START with the source's policy, PDH and session, for a VM that nothing was launched in."""

    policy: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
    pdh: bytes
    session: bytes


class ReceiveUpdateData(Message, frozen=True):
    """RECEIVE_UPDATE_DATA: take `length` bytes of guest memory to `gpa`, out of the packet at `offset` in a slot."""

    gpa: int
    length: int
    slot: int
    offset: int


class ReceiveUpdateVmsa(Message, frozen=True):
    """RECEIVE_UPDATE_VMSA: the same for a vCPU's registers, of `length` bytes."""

    index: int
    length: int
    slot: int
    offset: int


class ReceiveFinish(Message, frozen=True):
    """RECEIVE_FINISH: the guest may run here."""


class SetPageStates(Message, frozen=True):
    """The pages in the set that lies in the bitmap area are in shared state, all others private."""


class GetVmState(Message, frozen=True):
    """What of the machine is neither memory nor vCPU nor interrupt controller. Reply: VmState."""


class VmState(Message, frozen=True):
    """Opaque; only engines of the same name read it."""

    engine: str
    state: bytes


class SetVmState(Message, frozen=True):
    """Load what GetVmState gave on another host."""

    engine: str
    state: Annotated[bytes, msgspec.Meta(max_length=VM_STATE_LIMIT)]


class GetVcpuState(Message, frozen=True):
    """What the host may see of a vCPU that is out of guest mode: all its state, without SEV-ES. Reply: VcpuState."""

    index: int


class VcpuState(Message, frozen=True):
    """Opaque; only engines of the same name read it."""

    state: bytes


class SetVcpuState(Message, frozen=True):
    """Load what GetVcpuState gave on another host, once the page states are there."""

    index: int
    state: Annotated[bytes, msgspec.Meta(max_length=VCPU_STATE_LIMIT)]


# --- handler ----------------------------------------------------------------------------------------------------


class OpenHandler(Message, frozen=True):
    """Connect to the guest's migration handler.

    Reply: HandlerOpened with its socket, the outgoing ring (which only the platform can write) and the incoming one.
    """


class HandlerOpened(Message, frozen=True):
    """Shape of both rings, and where the RFC's mailbox is (from the guest's own GUIDed table)."""

    slots: int
    slot_size: int
    mailbox_gpa: int
    mailbox_size: int


# --- replies ----------------------------------------------------------------------------------------------------


class Done(Message, frozen=True):
    """The request succeeded and has nothing to say."""


class Failed(Message, frozen=True):
    """The request failed and changed nothing.

    `branch` names the branch of the error tree, `status` is the firmware's status code where there is one.
    """

    reason: str
    branch: str = "RefusedError"
    status: int | None = None


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
    | SendFinish
    | SendCancel
    | ReceiveStart
    | ReceiveUpdateData
    | ReceiveUpdateVmsa
    | ReceiveFinish
    | SetPageStates
    | GetVmState
    | SetVmState
    | GetVcpuState
    | SetVcpuState
    | OpenHandler
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
    | VmState
    | VcpuState
    | HandlerOpened
    | Done
    | Failed
)


# --- vCPUs in the guest -----------------------------------------------------------------------------------------------


class Run(Message, frozen=True):
    """Enter the guest, or go on after a port or MMIO access, which `data` completes.

    With `immediate_exit` the vCPU leaves as soon as the instruction underway, if any, is complete.
    """

    data: int = 0
    immediate_exit: bool = False


class PortOut(Message, frozen=True):
    """The guest writes `value` (`size` bytes) to an I/O port; the next Run completes the instruction."""

    port: int
    size: int
    value: int


class PortIn(Message, frozen=True):
    """The guest reads `size` bytes from an I/O port; the next Run brings them."""

    port: int
    size: int


class MmioRead(Message, frozen=True):
    """The guest reads `size` bytes at a GPA where there is no RAM; the next Run brings them."""

    address: int
    size: int


class MmioWrite(Message, frozen=True):
    """The guest writes `value` (`size` bytes) to a GPA where there is no RAM; the next Run completes it."""

    address: int
    size: int
    value: int


class PageStateChange(Message, frozen=True):
    """KVM_HC_MAP_GPA_RANGE has been carried out: `pages` from `gpa` are now private (encrypted) or shared."""

    gpa: int
    pages: int
    encrypted: bool


class Halt(Message, frozen=True):
    """HLT; another Run goes on behind it."""


class Fault(Message, frozen=True):
    """The guest cannot go on: an exception it has no handler for (or a triple fault)."""

    reason: str
    rip: int
    address: int
    error_code: int


class Interrupted(Message, frozen=True):
    """The vCPU was kicked, or the Run asked for an immediate exit."""


Exit: TypeAlias = PortOut | PortIn | MmioRead | MmioWrite | PageStateChange | Halt | Fault | Interrupted | Failed


# --- the table of requests and states ------------------------------------------------------------------------------

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
    SendFinish: _SENDING,
    SendCancel: _SENDING,
    ReceiveStart: frozenset({Phase.CREATED}),
    ReceiveUpdateData: _RECEIVING,
    ReceiveUpdateVmsa: _RECEIVING,
    ReceiveFinish: _RECEIVING,
    SetPageStates: _RECEIVING,
    GetVmState: _SENDING | _PLAIN,
    SetVmState: _RECEIVING | _PLAIN,
    GetVcpuState: _SENDING | _PLAIN,
    SetVcpuState: _RECEIVING | _PLAIN,
    OpenHandler: _MADE - _SETUP - _PLAIN,
    Run: _RUNNING | _PLAIN,
}
"""For every request the phases in which it may be made; a request that is missing here is never allowed."""
