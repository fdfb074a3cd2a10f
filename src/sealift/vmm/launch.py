"""Launching a confidential guest: the VMM's half of the conversation between platform and owner.

1. evidence (certificates, handler digest) to the owner, who answers with a launch session;
2. LAUNCH_START, then LAUNCH_UPDATE_DATA for every piece of the image in its fixed order, with SEV-ES
   LAUNCH_UPDATE_VMSA for every vCPU, LAUNCH_MEASURE; what the platform has taken is unmapped here, so that a large
   image takes no memory of this process;
3. the measurement to the owner, who releases the secret only if it is the expected one; LAUNCH_SECRET;
4. LAUNCH_FINISH, without SEV-ES the entry registers of the vCPUs that start; the guest can run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sealift.launch.entry import EntryState
from sealift.launch.image import GuestRecipe
from sealift.sev.policy import Policy
from sealift.vmm.memory import SharedMemory
from sealift.vmm.platform import Platform
from sealift.wire import platform as wire
from sealift.wire.owner import OwnerService, PlatformEvidence, SessionGrant

_RFLAGS = 2  # the bit that always reads as 1


@dataclass(frozen=True, slots=True)
class Launched:
    """What a VMM knows of a finished launch; `measure` is LAUNCH_MEASURE's 48 bytes, the name of the launch."""

    launch_id: str
    policy: int
    measure: bytes


def evidence_of(platform: Platform) -> PlatformEvidence:
    """What an owner needs to judge a platform."""
    info = platform.info()
    certificates = platform.request(wire.PdhCertExport(), wire.PdhCertificates)
    return PlatformEvidence(
        pdh=certificates.pdh,
        cert_chain=certificates.cert_chain,
        ca_chain=info.ca_chain,
        api_major=info.api_major,
        api_minor=info.api_minor,
        build_id=info.build_id,
        handler_digest=info.handler_digest,
    )


@dataclass(frozen=True, slots=True)
class Begun:
    """A launch that the owner agreed to; there need not be a VM yet."""

    grant: SessionGrant
    handler_digest: bytes


def begin(platform: Platform, owner: OwnerService, source_measure: bytes | None = None) -> Begun:
    """Ask the owner for a launch on this platform; with `source_measure` of a receiver for the guest of that launch.

    Raises:
        RefusedError: the owner refused; its message is the reason.
    """
    evidence = evidence_of(platform)
    grant = owner.begin(evidence) if source_measure is None else owner.begin_receiver(evidence, source_measure)
    return Begun(grant, evidence.handler_digest)


def launch(platform: Platform, memory: SharedMemory, recipe: GuestRecipe, owner: OwnerService) -> Launched:
    """Launch `recipe`.

    Raises:
        RefusedError: the owner refused; its message is the reason.
        FirmwareError: the platform refused a command.
    """
    return complete(platform, memory, recipe, owner, begin(platform, owner))


def complete(
    platform: Platform, memory: SharedMemory, recipe: GuestRecipe, owner: OwnerService, begun: Begun
) -> Launched:
    """Launch `recipe` as the owner agreed to; raises as `launch`."""
    grant = begun.grant
    recipe = replace(recipe, handler_digest=begun.handler_digest).under(Policy(grant.policy))
    platform.do(wire.LaunchStart(grant.policy, grant.dh_cert, grant.session))
    for piece in recipe.pieces():
        memory.place(piece.gpa, piece.data)
        platform.do(wire.LaunchUpdateData(piece.gpa, len(piece.data)))
        memory.forget(piece.gpa, len(piece.data))
    for vcpu, vmsa in enumerate(recipe.vmsas()):
        platform.do(wire.LaunchUpdateVmsa(vcpu, vmsa))
    measure = platform.request(wire.LaunchMeasure(), wire.Measurement).measure
    secret = owner.release(grant.launch_id, measure)
    platform.do(wire.LaunchSecret(secret.header, secret.payload, recipe.areas().secret.gpa))
    platform.do(wire.LaunchFinish())
    for vcpu in range(0 if recipe.es else recipe.vcpus):
        if (entry := recipe.entry(vcpu)) is not None:
            platform.do(wire.SetRegisters(vcpu, _registers(entry)))
    return Launched(grant.launch_id, grant.policy, measure)


def _registers(entry: EntryState) -> wire.Registers:
    general = [0] * 16
    general[5], general[4], general[7] = entry.rdi, entry.rsi, entry.rsp
    return wire.Registers(
        general=tuple(general),
        rip=entry.rip,
        rflags=_RFLAGS,
        cr0=entry.cr0,
        cr2=0,
        cr3=entry.cr3,
        cr4=entry.cr4,
        efer=entry.efer,
    )
