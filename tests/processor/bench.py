"""A secure processor with one guest, and for every command arguments with which it succeeds where states allow it.

Tests put platform and guest into any state by hand, spoil one argument or two, and look at the status.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from sealift.errors import FirmwareError, sentence
from sealift.sev import keys, packet, secret, session
from sealift.sev.certificate import Certificate, Usage
from sealift.sev.keys import Algorithm
from sealift.sev.measurement import SIZE as MEASURE_SIZE
from sealift.sev.packet import Context
from sealift.sev.policy import Policy
from sealift.sev.secret import SecretEntry
from sealift.sev.session import TransportKeys
from sealift.sev.status import Status
from sealift.silicon.processor.firmware import SecureProcessor
from sealift.silicon.processor.guest import GuestContext
from sealift.silicon.processor.states import Command, GuestState, PlatformState

from .memory import Memory

TABLE = secret.build_table([SecretEntry(secret.LUKS_KEY_GUID, b"open sesame")])
DATA = bytes(range(256)) * 16
POLICY = Policy.ES
"""Of the bench's guest: it can do everything."""

ES_ASID, SEV_ASID = 1, 100


@dataclass
class Bench:
    """One guest on a processor, and the platform it may be sent to."""

    processor: SecureProcessor
    target: SecureProcessor
    memory: Memory
    handle: int
    said: str = ""

    @property
    def guest(self) -> GuestContext:
        """The guest's context, to be altered."""
        return self.processor._guests[self.handle]

    @property
    def transport(self) -> TransportKeys:
        """Keys of the session that the guest has open in every state here."""
        return self.guest.session()

    def put(self, platform: PlatformState, guest: GuestState | None = None) -> None:
        """Put platform and guest into states by hand."""
        self.processor._state = platform
        if guest is not None:
            self.guest.state = guest

    def clear(self) -> None:
        """Switch the processor off, whatever was done to it."""
        for guest in self.processor._guests.values():
            guest.asid = None
        self.processor.close()

    def call(self, command: Command, arguments: dict[str, Any]) -> Status:
        """The status a command ends with."""
        try:
            getattr(self.processor, command.name.lower())(**arguments)
        except FirmwareError as error:
            self.said = sentence(error)
            return Status(error.status)
        return Status.SUCCESS

    def arguments(self, command: Command) -> dict[str, Any]:
        """Arguments with which a command succeeds."""
        made = _GUEST_ARGUMENTS.get(command)
        if made is not None:
            return {"handle": self.handle, **made(self)}
        match command:
            case Command.PEK_CERT_IMPORT:
                pek, oca = sign_as_owner(self.processor._keys().pek.unsigned(), keys.generate())
                return {"pek": pek.encode(), "oca": oca.encode()}
            case Command.LAUNCH_START:
                return {"memory": self.memory, "policy": 0, "dh_cert": b"", "launch_session": b""}
            case Command.RECEIVE_START:
                offered = session.offer(self.processor._keys().pdh, POLICY)
                sent = {"pdh": offered.dh_cert, "send_session": offered.session}
                return {"memory": self.memory, "policy": POLICY, **sent}
            case _:
                return {}


def _secret(bench: Bench) -> dict[str, Any]:
    assert bench.guest.measure is not None
    header, payload = secret.make_packet(bench.transport, bench.guest.measure, TABLE)
    return {"header": header, "payload": payload, "gpa": 0, "length": len(TABLE)}


def _packet(bench: Bench) -> dict[str, Any]:
    header, payload = packet.seal(bench.transport, Context.DATA, DATA)
    return {"header": header.encode(), "payload": payload}


def _target(bench: Bench) -> dict[str, Any]:
    certificates = bench.target.endorsed_certificates()
    chains = {"plat_certs": certificates.cert_chain, "amd_certs": bench.target.ca_chain}
    return {"pdh": certificates.pdh, **chains}


def _nothing(_: Bench) -> dict[str, Any]:
    return {}


_GUEST_ARGUMENTS: dict[Command, Callable[[Bench], dict[str, Any]]] = {
    Command.DECOMMISSION: _nothing,
    Command.ACTIVATE: lambda _: {"asid": ES_ASID},
    Command.DEACTIVATE: _nothing,
    Command.GUEST_STATUS: _nothing,
    Command.LAUNCH_UPDATE_DATA: lambda _: {"gpa": 0, "length": 4096},
    Command.LAUNCH_UPDATE_VMSA: lambda _: {"vcpu": 0, "vmsa": bytes(4096)},
    Command.LAUNCH_MEASURE: _nothing,
    Command.LAUNCH_SECRET: _secret,
    Command.LAUNCH_FINISH: _nothing,
    Command.ATTESTATION: lambda _: {"mnonce": bytes(16)},
    Command.SEND_START: _target,
    Command.SEND_UPDATE_DATA: lambda _: {"gpa": 0, "length": 4096},
    Command.SEND_UPDATE_VMSA: lambda _: {"vcpu": 0},
    Command.SEND_FINISH: _nothing,
    Command.SEND_CANCEL: _nothing,
    Command.RECEIVE_UPDATE_DATA: lambda bench: {**_packet(bench), "gpa": 0, "length": len(DATA)},
    Command.RECEIVE_UPDATE_VMSA: lambda bench: {**_packet(bench), "vcpu": 0},
    Command.RECEIVE_FINISH: _nothing,
    Command.DBG_DECRYPT: lambda _: {"gpa": 0, "destination": memoryview(bytearray(4096))},
    Command.DBG_ENCRYPT: lambda _: {"gpa": 0, "data": DATA},
}


def make_bench(processor: SecureProcessor, target: SecureProcessor) -> Bench:
    """A guest that has an ASID, an open session, a measurement and registers, whatever state it is put into."""
    memory = Memory(bytearray(64 * 1024))
    handle = processor.launch_start(memory, POLICY, b"", b"")
    processor.activate(handle, ES_ASID)
    bench = Bench(processor, target, memory, handle)
    bench.guest.transport = TransportKeys.fresh()
    bench.guest.measure = bytes(MEASURE_SIZE)
    memory.place_vmsa(0, bytes(4096))
    return bench


def sign_as_owner(csr: Certificate, oca_key: ec.EllipticCurvePrivateKey) -> tuple[Certificate, Certificate]:
    """What `sevctl provision` makes of a PEK_CSR: the signed PEK, and the owner's own certificate."""
    ecdsa = Algorithm.ECDSA_SHA256
    oca = Certificate.of(Usage.OCA, ecdsa, oca_key.public_key())
    return csr.signed(Usage.OCA, oca_key, ecdsa), oca.signed(Usage.OCA, oca_key, ecdsa)
