"""What moves a guest without its handler: SEND and RECEIVE of secure processors, and state that a VMM may see.

Packets lie in memory that both sides map (`OpenPackets`); see `sealift.wire.psp` for what a VMM makes of them.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from sealift.wire.platform.message import Message

VCPU_STATE_LIMIT = 64 * 1024
"""Bytes of a vCPU's state: KVM's XSAVE area takes at most some 11 KiB, all MSRs another few."""

VM_STATE_LIMIT = 4 * 1024
"""Bytes of a VM's own state: a few flags."""


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


class SealStream(Message, frozen=True):
    """The session's MAC over the SHA-256 of all that goes beside its packets. Reply: StreamSealed."""

    digest: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class StreamSealed(Message, frozen=True):
    """The MAC; no session but this one has the same."""

    mac: bytes


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


class CheckStream(Message, frozen=True):
    """Demand that the source's secure processor made this MAC over this SHA-256, in this session."""

    digest: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    mac: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


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
