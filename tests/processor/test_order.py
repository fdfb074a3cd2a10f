"""The order of checks: of two faults the earlier one is told, and every fault has its status code.

Orders are written from the description of AMD's firmware. All faults of a command are tried alone and in pairs.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import NamedTuple

import pytest

from sealift.sev import session
from sealift.sev.certificate import Certificate
from sealift.sev.policy import Policy
from sealift.sev.status import Status
from sealift.silicon.processor import core
from sealift.silicon.processor.asids import MAX_ASID
from sealift.silicon.processor.states import COMMANDS, Command, GuestState, PlatformState

from . import spoils
from .bench import ES_ASID, SEV_ASID, Bench
from .spoils import Arguments, Spoil


class Fault(NamedTuple):
    """What goes wrong, the status it has, and how to bring it about."""

    name: str
    status: Status
    spoil: Spoil


def _policy(bits: int) -> Spoil:
    """Give the guest other policy bits."""
    return lambda bench, _: setattr(bench.guest, "policy", bench.guest.policy | bits)


def _wrong_state(bench: Bench, _: Arguments) -> None:
    bench.guest.state = GuestState.LUPDATE if bench.guest.state is not GuestState.LUPDATE else GuestState.LSECRET


def _no_es(bench: Bench, _: Arguments) -> None:
    bench.guest.policy &= ~Policy.ES


def _compressed(bench: Bench, arguments: Arguments) -> None:
    """Seal the secret with the flag set: its MAC holds."""
    assert bench.guest.measure is not None
    header, payload = arguments["header"], arguments["payload"]
    length = len(payload).to_bytes(4, "little")
    front, iv = b"\1\0\0\0", header[4:20]
    message = b"\x01" + front + iv + length + length + payload + bench.guest.measure[:32]
    arguments["header"] = front + iv + hmac.digest(bench.transport.tik, message, "sha256")


PLATFORM = Fault("platform", Status.INVALID_PLATFORM_STATE, lambda b, _: b.put(PlatformState.INIT))
UNINIT = Fault("platform", Status.INVALID_PLATFORM_STATE, lambda b, _: b.put(PlatformState.UNINIT))
WORKING = Fault("platform", Status.INVALID_PLATFORM_STATE, lambda b, _: b.put(PlatformState.WORKING))
HANDLE = Fault("handle", Status.INVALID_GUEST, spoils.put("handle", 99))
STATE = Fault("guest state", Status.INVALID_GUEST_STATE, _wrong_state)
ASID = Fault("no ASID", Status.INACTIVE, lambda bench, _: setattr(bench.guest, "asid", None))
ES = Fault("no ES", Status.UNSUPPORTED, _no_es)
ADDRESS = Fault("address", Status.INVALID_ADDRESS, spoils.put("gpa", 8))
LENGTH = Fault("length", Status.INVALID_LENGTH, spoils.put("length", 8))
NOT_RAM = Fault("not RAM", Status.INVALID_ADDRESS, spoils.put("gpa", 1 << 30))
HEADER_ROOM = Fault("room for the header", Status.INVALID_LENGTH, spoils.put("header_room", 51))
PACKET_MAC = Fault("MAC", Status.BAD_MEASUREMENT, spoils.flip("header", 30))
NO_VCPU = Fault("no such vCPU", Status.INVALID_ADDRESS, spoils.put("vcpu", 7))
COMPRESSED = Fault("compressed", Status.UNSUPPORTED, spoils.flip("header", 0))

OCA_SIGNATURE, PEK_KEY = 1044 + 8, 0x14
SIGNATURE_SLOT = 1044

ORDERS: dict[Command, tuple[Fault, ...]] = {
    Command.INIT: (WORKING, Fault("flags", Status.INVALID_PARAM, spoils.put("flags", 2))),
    Command.PEK_CSR: (UNINIT, Fault("room", Status.INVALID_LENGTH, spoils.put("room", 2083))),
    Command.PDH_CERT_EXPORT: (UNINIT, Fault("room", Status.INVALID_LENGTH, spoils.put("chain_room", 6251))),
    Command.PEK_CERT_IMPORT: (
        WORKING,
        Fault("owned", Status.ALREADY_OWNED, lambda bench, _: _own(bench)),
        Fault("PEK's length", Status.INVALID_LENGTH, spoils.cut("pek")),
        Fault("OCA's length", Status.INVALID_LENGTH, spoils.cut("oca")),
        Fault("OCA's version", Status.INVALID_CERTIFICATE, spoils.put("oca", bytes(2084))),
        Fault("PEK's usage", Status.INVALID_CERTIFICATE, spoils.overwrite("pek", 8, b"\x03\x10")),
        Fault("half a slot", Status.BAD_SIGNATURE, spoils.overwrite("oca", SIGNATURE_SLOT + 4, bytes(4))),
        Fault("OCA's signature", Status.BAD_SIGNATURE, spoils.flip("oca", OCA_SIGNATURE)),
        Fault("PEK's signature", Status.BAD_SIGNATURE, spoils.flip("pek", OCA_SIGNATURE)),
        Fault("another PEK", Status.INVALID_CERTIFICATE, lambda bench, _: _new_pek(bench)),
    ),
    Command.ACTIVATE: (
        PLATFORM,
        HANDLE,
        Fault("guest state", Status.INVALID_GUEST_STATE, lambda b, _: setattr(b.guest, "state", GuestState.SENT)),
        Fault("ASID", Status.INVALID_ASID, spoils.put("asid", MAX_ASID + 1)),
        Fault("owned ASID", Status.ASID_OWNED, lambda b, a: b.processor._asids._owned.add(a["asid"])),
        Fault("active", Status.ACTIVE, lambda bench, _: setattr(bench.guest, "asid", 5)),
        Fault("dirty ASID", Status.DFFLUSH_REQUIRED, lambda b, a: b.processor._asids._cached.add(a["asid"])),
        Fault("other kind of ASID", Status.INVALID_ASID, _no_es),
    ),
    Command.DEACTIVATE: (PLATFORM, HANDLE, ASID),
    Command.DECOMMISSION: (
        PLATFORM,
        HANDLE,
        Fault("active", Status.ACTIVE, lambda bench, _: setattr(bench.guest, "asid", ES_ASID)),
    ),
    Command.LAUNCH_UPDATE_DATA: (PLATFORM, HANDLE, ADDRESS, LENGTH, STATE, ASID, NOT_RAM),
    Command.LAUNCH_UPDATE_VMSA: (
        PLATFORM,
        HANDLE,
        Fault("length", Status.INVALID_LENGTH, spoils.cut("vmsa")),
        STATE,
        ASID,
        ES,
        NO_VCPU,
    ),
    Command.LAUNCH_MEASURE: (PLATFORM, HANDLE, STATE, Fault("room", Status.INVALID_LENGTH, spoils.put("room", 47))),
    Command.LAUNCH_SECRET: (
        PLATFORM,
        HANDLE,
        ADDRESS,
        LENGTH,
        Fault("header's length", Status.INVALID_LENGTH, spoils.cut("header")),
        Fault("payload's length", Status.INVALID_LENGTH, spoils.cut("payload")),
        STATE,
        ASID,
        PACKET_MAC,
        Fault("compressed", Status.UNSUPPORTED, _compressed),
        NOT_RAM,
    ),
    Command.LAUNCH_FINISH: (PLATFORM, HANDLE, STATE),
    Command.ATTESTATION: (
        PLATFORM,
        HANDLE,
        STATE,
        Fault("room", Status.INVALID_LENGTH, spoils.put("room", 207)),
        Fault("nonce", Status.INVALID_LENGTH, spoils.put("mnonce", bytes(15))),
    ),
    Command.SEND_START: (
        PLATFORM,
        HANDLE,
        Fault("session's room", Status.INVALID_LENGTH, spoils.put("session_room", 127)),
        STATE,
        Fault("NOSEND", Status.POLICY_FAILURE, _policy(Policy.NOSEND)),
        Fault(
            "SEV",
            Status.POLICY_FAILURE,
            lambda bench, a: (_policy(Policy.SEV)(bench, a), spoils.flip("amd_certs", 99)(bench, a)),
        ),
        Fault("DOMAIN", Status.POLICY_FAILURE, _policy(Policy.DOMAIN)),
        Fault("PDH's length", Status.INVALID_LENGTH, spoils.cut("pdh")),
        Fault("PDH's algorithm", Status.INVALID_CERTIFICATE, spoils.overwrite("pdh", 0xC, b"\x02")),
    ),
    Command.SEND_UPDATE_DATA: (
        PLATFORM,
        HANDLE,
        HEADER_ROOM,
        LENGTH,
        Fault("room for the payload", Status.INVALID_LENGTH, spoils.put("trans_room", 0)),
        ADDRESS,
        STATE,
        ASID,
        NOT_RAM,
    ),
    Command.SEND_UPDATE_VMSA: (
        PLATFORM,
        HANDLE,
        HEADER_ROOM,
        Fault("room for the payload", Status.INVALID_LENGTH, spoils.put("trans_room", 4095)),
        STATE,
        ASID,
        ES,
        NO_VCPU,
    ),
    Command.SEND_FINISH: (PLATFORM, HANDLE, STATE),
    Command.SEND_CANCEL: (PLATFORM, HANDLE, STATE),
    Command.RECEIVE_UPDATE_DATA: (
        PLATFORM,
        HANDLE,
        Fault("header's length", Status.INVALID_LENGTH, spoils.cut("header")),
        LENGTH,
        Fault("payload's length", Status.INVALID_LENGTH, spoils.cut("payload")),
        ADDRESS,
        STATE,
        ASID,
        COMPRESSED,
        PACKET_MAC,
        NOT_RAM,
    ),
    Command.RECEIVE_UPDATE_VMSA: (
        PLATFORM,
        HANDLE,
        Fault("header's length", Status.INVALID_LENGTH, spoils.cut("header")),
        Fault("payload's length", Status.INVALID_LENGTH, spoils.cut("payload")),
        STATE,
        ASID,
        ES,
        COMPRESSED,
        PACKET_MAC,
        NO_VCPU,
    ),
    Command.RECEIVE_FINISH: (PLATFORM, HANDLE, STATE),
    Command.DBG_DECRYPT: (
        PLATFORM,
        ADDRESS,
        Fault("length", Status.INVALID_LENGTH, spoils.put("destination", memoryview(bytearray(17)))),
        HANDLE,
        Fault("NODBG", Status.POLICY_FAILURE, _policy(Policy.NODBG)),
        ASID,
        NOT_RAM,
    ),
    Command.DBG_ENCRYPT: (
        PLATFORM,
        ADDRESS,
        Fault("length", Status.INVALID_LENGTH, spoils.put("data", b"odd")),
        HANDLE,
        Fault("NODBG", Status.POLICY_FAILURE, _policy(Policy.NODBG)),
        ASID,
        NOT_RAM,
    ),
}
"""Faults in the order in which firmware looks for them; LAUNCH_START and RECEIVE_START are below."""


def _own(bench: Bench) -> None:
    arguments = bench.arguments(Command.PEK_CERT_IMPORT)
    before = bench.processor._state
    bench.put(PlatformState.INIT)
    assert bench.call(Command.PEK_CERT_IMPORT, arguments) is Status.SUCCESS
    bench.put(before)


def _new_pek(bench: Bench) -> None:
    owned = bench.processor._keys().externally_owned
    with bench.processor._identity.changing(bench.processor._keys_held):
        bench.processor._identity.regenerate((1, 55))
    if owned:
        _own(bench)


PREPARED: dict[Command, PlatformState] = {
    Command.INIT: PlatformState.UNINIT,
    Command.PEK_CERT_IMPORT: PlatformState.INIT,
}
"""Where the platform is when a command is to succeed; else WORKING."""


def _prepared(bench: Bench, command: Command) -> Arguments:
    """Everything as it must be for `command` to succeed."""
    arguments = bench.arguments(command)
    allowed = COMMANDS[command].guest - {GuestState.UNINIT}
    if command in {Command.ACTIVATE, Command.DECOMMISSION}:
        bench.guest.asid = None
        bench.processor._asids._owned.clear()
    state = GuestState.RUNNING if GuestState.RUNNING in allowed else min(allowed, default=GuestState.RUNNING)
    bench.put(PREPARED.get(command, PlatformState.WORKING), state)
    return arguments


@pytest.mark.parametrize("command", ORDERS, ids=lambda command: command.name)
def test_of_two_faults_the_earlier_is_told(make: Callable[[], Bench], command: Command) -> None:
    faults = ORDERS[command]
    bench = make()
    assert bench.call(command, _prepared(bench, command)) is Status.SUCCESS
    for first, earlier in enumerate(faults):
        for later in faults[first:]:
            bench = make()
            arguments = _prepared(bench, command)
            later.spoil(bench, arguments)
            if earlier is not later:
                earlier.spoil(bench, arguments)
            assert bench.call(command, arguments) is earlier.status, f"{earlier.name} before {later.name}"
            assert len(bench.said.removeprefix(earlier.status.sentence)) > 20, "a sentence of its own"


# --- LAUNCH_START and RECEIVE_START -------------------------------------------------------------------------------


class Offer:
    """Arguments of LAUNCH_START or RECEIVE_START, made when all faults are known."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.policy = Policy.NODBG
        self.another_policy = self.another_pdh = self.short_session = self.short_cert = self.no_pdh = False
        self.share = 0

    def call(self, command: Command) -> Status:
        """The status of the command with this offer."""
        pdh = self.bench.processor._keys().pdh
        if self.another_pdh:
            pdh = self.bench.target._keys().pdh
        made = session.offer(pdh, self.policy ^ Policy.NOKS if self.another_policy else self.policy)
        cert, blob = Certificate.decode(made.dh_cert).encode(), made.session
        if self.no_pdh:
            cert = cert[:8] + b"\x02\x10" + cert[10:]
        cert, blob = cert[: -1 if self.short_cert else None], blob[: -1 if self.short_session else None]
        memory = self.bench.memory
        if command is Command.LAUNCH_START:
            given = {"dh_cert": cert, "launch_session": blob, "share": self.share}
        else:
            given = {"pdh": cert, "send_session": blob}
        return self.bench.call(command, {"memory": memory, "policy": self.policy, **given})


class OfferFault(NamedTuple):
    """As `Fault`, for an offer."""

    name: str
    status: Status
    spoil: Callable[[Offer, pytest.MonkeyPatch], object]


def _yes(name: str) -> Callable[[Offer, pytest.MonkeyPatch], object]:
    return lambda offer, _: setattr(offer, name, True)


def _bits(bits: int) -> Callable[[Offer, pytest.MonkeyPatch], object]:
    return lambda offer, _: setattr(offer, "policy", offer.policy | bits)


def _want_es(offer: Offer, _: pytest.MonkeyPatch) -> None:
    offer.bench.processor._es = False
    offer.policy |= Policy.ES


def _share_with_another_policy(offer: Offer, _: pytest.MonkeyPatch) -> None:
    offer.share = offer.share or offer.bench.handle


SESSION_FAULTS = (
    OfferFault("platform", Status.INVALID_PLATFORM_STATE, lambda o, _: o.bench.put(PlatformState.UNINIT)),
    OfferFault("session's length", Status.INVALID_LENGTH, _yes("short_session")),
    OfferFault("certificate's length", Status.INVALID_LENGTH, _yes("short_cert")),
    OfferFault("certificate's usage", Status.INVALID_CERTIFICATE, _yes("no_pdh")),
    OfferFault("WRAP_MAC", Status.BAD_MEASUREMENT, _yes("another_pdh")),
    OfferFault("POLICY_MAC", Status.BAD_MEASUREMENT, _yes("another_policy")),
    OfferFault("API", Status.POLICY_FAILURE, _bits(2 << 16)),
    OfferFault("reserved bits", Status.POLICY_FAILURE, _bits(0x40)),
)
SHARE_FAULTS = (
    OfferFault("share's handle", Status.INVALID_GUEST, lambda offer, _: setattr(offer, "share", 99)),
    OfferFault("share's policy", Status.POLICY_FAILURE, _share_with_another_policy),
)
SLOT_FAULTS = (
    OfferFault("slots", Status.RESOURCE_LIMIT, lambda _, patch: patch.setattr(core, "GUEST_SLOTS", 1)),
    OfferFault("ES", Status.UNSUPPORTED, _want_es),
)


@pytest.mark.parametrize(
    ("command", "faults"),
    [
        (Command.LAUNCH_START, SESSION_FAULTS + SHARE_FAULTS + SLOT_FAULTS),
        (Command.RECEIVE_START, SESSION_FAULTS + SLOT_FAULTS),
    ],
    ids=["LAUNCH_START", "RECEIVE_START"],
)
def test_of_two_faults_in_an_offer_the_earlier_is_told(
    make: Callable[[], Bench], command: Command, faults: tuple[OfferFault, ...]
) -> None:
    assert Offer(make()).call(command) is Status.SUCCESS
    for first, earlier in enumerate(faults):
        for later in faults[first:]:
            offer = Offer(make())
            with pytest.MonkeyPatch.context() as patch:
                later.spoil(offer, patch)
                if earlier is not later:
                    earlier.spoil(offer, patch)
                assert offer.call(command) is earlier.status, f"{earlier.name} before {later.name}"
            guests = offer.bench.processor._guests
            assert len(guests) == 1, "a refused guest leaves nothing behind"


def test_every_command_that_can_fail_beyond_its_state_has_an_order() -> None:
    without = {
        Command.SHUTDOWN,
        Command.PLATFORM_RESET,
        Command.PLATFORM_STATUS,
        Command.PEK_GEN,
        Command.PDH_GEN,
        Command.DF_FLUSH,
        Command.GET_ID,
        Command.GUEST_STATUS,
    }
    assert set(ORDERS) == set(Command) - without - {Command.LAUNCH_START, Command.RECEIVE_START}
    assert SEV_ASID > ES_ASID
