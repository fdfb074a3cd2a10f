"""Launching a confidential guest: the VMM's half of the conversation between platform and owner.

1. evidence (certificates, handler digest) to the owner, who answers with a launch session;
2. LAUNCH_START, then LAUNCH_UPDATE_DATA for every piece of the image in its fixed order, with SEV-ES
   LAUNCH_UPDATE_VMSA for every vCPU, LAUNCH_MEASURE; what the platform has taken is unmapped here, so that a large
   image takes no memory of this process;
3. the measurement to the owner, who releases the secret only if it is the expected one; LAUNCH_SECRET;
4. LAUNCH_FINISH, without SEV-ES the entry registers of the vCPUs that start; the guest can run.

An owner who is not asked from here has made its session beforehand (`launch_for`). It fetches the measurement and
brings its secret between steps 2 and 4, by any channel it likes.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import Final

from sealift.errors import UserError
from sealift.launch.entry import EntryState
from sealift.launch.image import GuestRecipe
from sealift.sev.policy import Policy
from sealift.vmm.memory import SharedMemory
from sealift.vmm.platform import Platform
from sealift.wire import platform as wire
from sealift.wire.owner import OwnerService, PlatformEvidence, SessionGrant

_RFLAGS = 2  # the bit that always reads as 1


@dataclass(frozen=True, slots=True)
class LaunchTerms:
    """What LAUNCH_START takes of an owner; without certificate and session there is no channel to any owner."""

    policy: int
    dh_cert: bytes = b""
    session: bytes = b""


@dataclass(frozen=True, slots=True)
class Launched:
    """What a VMM knows of a finished launch; `measure` is LAUNCH_MEASURE's 48 bytes, the name of the launch.

    It is empty for a guest that a secure processor brought here: nothing was measured on this host.
    """

    policy: int
    measure: bytes


PLAIN_LAUNCH: Final = Launched(0, b"")
"""Of a guest that is not confidential: it never had one."""


class Launch:
    """A launch that has been measured: its secrets may come until it is finished. Thread-safe.

    Attributes:
        launched: what is known of it.
        secret_gpa: where a secret belongs, as the start-up code's GUIDed table says.
    """

    def __init__(self, platform: Platform, recipe: GuestRecipe, launched: Launched) -> None:
        self.launched = launched
        self.secret_gpa = recipe.areas().secret.gpa
        self._platform = platform
        self._entries = [] if recipe.es else [recipe.entry(vcpu) for vcpu in range(recipe.vcpus)]
        self._finished = False
        self._lock = threading.Lock()

    @property
    def finished(self) -> bool:
        """Whether LAUNCH_FINISH has been issued."""
        with self._lock:
            return self._finished

    def inject(self, header: bytes, payload: bytes, gpa: int | None = None) -> None:
        """LAUNCH_SECRET: plant an owner's packet, in its own place or at `gpa`; may be repeated.

        Raises:
            UserError: the launch is finished.
            FirmwareError: the platform's reason.
        """
        with self._lock:
            if self._finished:
                raise UserError("the guest has been started, and takes no launch secret any more")
            where = self.secret_gpa if gpa is None else gpa
            self._platform.do(wire.LaunchSecret(header, payload, where))

    def finish(self) -> Launched:
        """LAUNCH_FINISH, and the vCPUs' first registers unless VMSAs hold them; again does nothing.

        Raises:
            FirmwareError: the platform's reason.
        """
        with self._lock:
            if not self._finished:
                self._platform.do(wire.LaunchFinish())
                self._finished = True
                self._set_entry()
        return self.launched

    def _set_entry(self) -> None:
        for vcpu, entry in enumerate(self._entries):
            if entry is not None:
                self._platform.do(wire.SetRegisters(vcpu, _registers(entry)))


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


def begin_restore(platform: Platform, owner: OwnerService, header: bytes) -> Begun:
    """Ask the owner for a launch on this platform that restores the snapshot with that header; raises as `begin`."""
    evidence = evidence_of(platform)
    return Begun(owner.begin_restore(evidence, header), evidence.handler_digest)


def launch(platform: Platform, memory: SharedMemory, recipe: GuestRecipe, owner: OwnerService) -> Launch:
    """Launch `recipe`, up to and with its owner's secret.

    Raises:
        RefusedError: the owner refused; its message is the reason.
        FirmwareError: the platform refused a command.
    """
    return complete(platform, memory, recipe, owner, begin(platform, owner))


def complete(
    platform: Platform, memory: SharedMemory, recipe: GuestRecipe, owner: OwnerService, begun: Begun
) -> Launch:
    """Launch `recipe` as the owner agreed to; raises as `launch`."""
    grant = begun.grant
    recipe = replace(recipe, handler_digest=begun.handler_digest).under(Policy(grant.policy))
    measured = _measured(platform, memory, recipe, LaunchTerms(grant.policy, grant.dh_cert, grant.session))
    secret = owner.release(grant.launch_id, measured.launched.measure)
    measured.inject(secret.header, secret.payload)
    return measured


def launch_for(platform: Platform, memory: SharedMemory, recipe: GuestRecipe, terms: LaunchTerms) -> Launch:
    """Launch `recipe` on the terms of an owner who is not asked from here; no secret is in it yet.

    Raises:
        FirmwareError: the platform refused a command; BAD_MEASUREMENT for a session that does not fit.
    """
    recipe = replace(recipe, handler_digest=platform.info().handler_digest).under(Policy(terms.policy))
    return _measured(platform, memory, recipe, terms)


def load_plain(platform: Platform, memory: SharedMemory, recipe: GuestRecipe) -> Launched:
    """Load a guest that is not confidential: nothing is measured, and nobody has to agree.

    Raises:
        UserError: a file of the guest can no longer be read.
    """
    for piece in recipe.pieces():
        memory.place(piece.gpa, piece.data)
    for vcpu in range(recipe.vcpus):
        if (entry := recipe.entry(vcpu)) is not None:
            platform.do(wire.SetRegisters(vcpu, _registers(entry)))
    return PLAIN_LAUNCH


def _measured(platform: Platform, memory: SharedMemory, recipe: GuestRecipe, terms: LaunchTerms) -> Launch:
    """LAUNCH_START to LAUNCH_MEASURE."""
    platform.do(wire.LaunchStart(terms.policy, terms.dh_cert, terms.session))
    for piece in recipe.pieces():
        memory.place(piece.gpa, piece.data)
        platform.do(wire.LaunchUpdateData(piece.gpa, len(piece.data)))
        memory.forget(piece.gpa, len(piece.data))
    for vcpu, vmsa in enumerate(recipe.vmsas()):
        platform.do(wire.LaunchUpdateVmsa(vcpu, vmsa))
    measure = platform.request(wire.LaunchMeasure(), wire.Measurement).measure
    return Launch(platform, recipe, Launched(terms.policy, measure))


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
