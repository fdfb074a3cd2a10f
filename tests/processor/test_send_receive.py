"""A guest moves from one secure processor to another: what arrives, what policies forbid, what altered packets do."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from sealift.errors import FirmwareError
from sealift.sev import keys
from sealift.sev.certificate import Certificate
from sealift.sev.packet import Context, Header, unseal
from sealift.sev.policy import Policy, parse_policy
from sealift.sev.report import AttestationReport
from sealift.sev.status import Status
from sealift.silicon.processor.firmware import INIT_ES, SecureProcessor
from sealift.silicon.processor.identity import PlatformIdentity
from sealift.silicon.processor.profile import AMD_1_55_25, NUMBERED_CONTEXTS, Profile
from sealift.silicon.processor.room import ShortBufferError
from sealift.silicon.processor.send import PACKET_LIMIT, SendStarted
from sealift.silicon.processor.states import GuestState

from .bench import sign_as_owner
from .memory import Memory, status_of

SIZE = 64 * 1024
VMSAS = [bytes([number]) * 4096 for number in (1, 2)]
ALL_CHECKS = Policy.SEV | Policy.DOMAIN | Policy.NODBG


@dataclass
class Side:
    """One platform with its half of a migration."""

    processor: SecureProcessor
    memory: Memory
    handle: int = 0

    def start_sending(self, target: Side) -> SendStarted:
        """SEND_START for `target`."""
        certificates = target.processor.endorsed_certificates()
        chains = certificates.cert_chain, target.processor.ca_chain
        return self.processor.send_start(self.handle, certificates.pdh, *chains)

    def start_receiving(self, source: Side, started: SendStarted) -> None:
        """RECEIVE_START and ACTIVATE."""
        pdh = source.processor.pdh_cert_export().pdh
        self.handle = self.processor.receive_start(self.memory, started.policy, pdh, started.session)
        self.processor.activate(self.handle, 1 if started.policy & Policy.ES else 100)


@pytest.fixture
def launch(processor: SecureProcessor) -> Callable[[Policy], Side]:
    """Makes a running guest on the source."""
    processor.shutdown()
    processor.init(INIT_ES)
    processor.pek_gen()

    def make(policy: Policy) -> Side:
        memory = Memory(bytearray(os.urandom(SIZE)))
        handle = processor.launch_start(memory, policy, b"", b"")
        processor.activate(handle, 1 if policy & Policy.ES else 100)
        processor.launch_update_data(handle, 0, SIZE)
        for vcpu, page in enumerate(VMSAS if policy & Policy.ES else []):
            processor.launch_update_vmsa(handle, vcpu, page)
        processor.launch_measure(handle)
        processor.launch_finish(handle)
        return Side(processor, memory, handle)

    return make


@pytest.fixture
def there(target: SecureProcessor) -> Side:
    return Side(target, Memory(bytearray(SIZE)))


def _share_an_owner(*processors: SecureProcessor) -> None:
    oca_key = keys.generate()
    oca = b""
    for processor in processors:
        csr = Certificate.decode(processor.pek_csr())
        pek, made = sign_as_owner(csr, oca_key)
        oca = oca or made.encode()  # signing again would give other bytes
        processor.pek_cert_import(pek.encode(), oca)


# --- what arrives -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", [AMD_1_55_25, NUMBERED_CONTEXTS], ids=["amd", "numbered"])
def test_a_guest_moves_whole(launch: Callable[[Policy], Side], there: Side, profile: Profile) -> None:
    """Test memory and registers, under a policy that asks for everything but a common owner."""
    here = launch(Policy.SEV | Policy.ES)
    here.processor._profile = there.processor._profile = profile
    started = here.start_sending(there)
    there.start_receiving(here, started)
    assert there.processor.guest_status(there.handle).policy == Policy.SEV | Policy.ES
    for gpa in range(0, SIZE, 16384):
        sent = here.processor.send_update_data(here.handle, gpa, 16384)
        assert bytes(here.memory.private[gpa : gpa + 64]) not in sent.payload
        there.processor.receive_update_data(there.handle, sent.header, sent.payload, gpa, 16384)
    for vcpu in range(len(VMSAS)):
        sent = here.processor.send_update_vmsa(here.handle, vcpu)
        header = Header.decode(sent.header)
        unseal(here.processor._guests[here.handle].session(), profile.vmsa_context, header, sent.payload)
        there.processor.receive_update_vmsa(there.handle, vcpu, sent.header, sent.payload)
    here.processor.send_finish(here.handle)
    there.processor.receive_finish(there.handle)
    assert there.memory.private == here.memory.private
    assert [there.memory.vmsas[vcpu] for vcpu in range(2)] == VMSAS
    assert here.processor.guest_status(here.handle).state is GuestState.SENT
    assert there.processor.guest_status(there.handle).state is GuestState.RUNNING


def test_the_profiles_differ_in_the_vmsas_context_alone() -> None:
    assert AMD_1_55_25.vmsa_context is Context.DATA
    assert NUMBERED_CONTEXTS.vmsa_context is Context.VMSA
    assert AMD_1_55_25.version == NUMBERED_CONTEXTS.version


def test_firmware_of_the_other_profile_refuses_the_registers(launch: Callable[[Policy], Side], there: Side) -> None:
    here = launch(Policy.ES)
    here.processor._profile = NUMBERED_CONTEXTS
    there.start_receiving(here, here.start_sending(there))
    sent = here.processor.send_update_vmsa(here.handle, 0)
    receive = there.processor.receive_update_vmsa
    assert status_of(receive, there.handle, 0, sent.header, sent.payload) is Status.BAD_MEASUREMENT


def test_a_packet_has_up_to_a_mebibyte(launch: Callable[[Policy], Side], there: Side) -> None:
    here = launch(Policy(0))
    here.memory.private = bytearray(os.urandom(2 * PACKET_LIMIT))
    here.memory.shared = there.memory.shared = bytearray(2 * PACKET_LIMIT)
    there.memory.private = bytearray(2 * PACKET_LIMIT)
    there.start_receiving(here, here.start_sending(there))
    send, receive = here.processor.send_update_data, there.processor.receive_update_data
    sent = send(here.handle, 16, PACKET_LIMIT)
    receive(there.handle, sent.header, sent.payload, 16, PACKET_LIMIT)
    assert there.memory.private[16 : 16 + PACKET_LIMIT] == here.memory.private[16 : 16 + PACKET_LIMIT]
    assert status_of(send, here.handle, 0, PACKET_LIMIT + 16) is Status.INVALID_LENGTH
    longer = PACKET_LIMIT + 16
    assert status_of(receive, there.handle, bytes(52), bytes(longer), 0, longer) is Status.INVALID_LENGTH


def test_a_received_guest_has_no_launch_digest(launch: Callable[[Policy], Side], there: Side) -> None:
    here = launch(Policy(0))
    there.start_receiving(here, here.start_sending(there))
    there.processor.receive_finish(there.handle)
    report = AttestationReport.decode(there.processor.attestation(there.handle, bytes(16)))
    assert report.launch_digest == bytes(32)
    assert AttestationReport.decode(here.processor.attestation(here.handle, bytes(16))).launch_digest != bytes(32)


def test_a_received_guest_can_be_sent_on(launch: Callable[[Policy], Side], there: Side) -> None:
    here = launch(Policy.SEV)
    there.start_receiving(here, here.start_sending(there))
    for gpa in range(0, SIZE, 4096):
        sent = here.processor.send_update_data(here.handle, gpa, 4096)
        there.processor.receive_update_data(there.handle, sent.header, sent.payload, gpa, 4096)
    here.processor.send_finish(here.handle)
    there.processor.receive_finish(there.handle)
    back = Side(here.processor, Memory(bytearray(SIZE)))
    started = there.start_sending(back)
    pdh = there.processor.pdh_cert_export().pdh
    back.handle = back.processor.receive_start(back.memory, started.policy, pdh, started.session)
    back.processor.activate(back.handle, 101)
    for gpa in range(0, SIZE, 4096):
        sent = there.processor.send_update_data(there.handle, gpa, 4096)
        back.processor.receive_update_data(back.handle, sent.header, sent.payload, gpa, 4096)
    assert back.memory.private == here.memory.private


# --- sizes --------------------------------------------------------------------------------------------------------


def test_queries_tell_the_sizes(launch: Callable[[Policy], Side], there: Side) -> None:
    """Test the queries a kernel makes before it knows any size."""
    here = launch(Policy.ES)
    certificates = there.processor.endorsed_certificates()
    with pytest.raises(ShortBufferError) as caught:
        here.processor.send_start(here.handle, certificates.pdh, b"", b"", 0)
    assert caught.value.required == (128,)
    here.start_sending(there)
    for rooms in ((0, 0), (51, 4096), (52, 0), (52, 4095)):
        with pytest.raises(ShortBufferError) as caught:
            here.processor.send_update_data(here.handle, 0, 4096, *rooms)
        assert (caught.value.status, caught.value.required) == (Status.INVALID_LENGTH, (52, 4096))
        with pytest.raises(ShortBufferError) as caught:
            here.processor.send_update_vmsa(here.handle, 0, *rooms)
        assert caught.value.required == (52, 4096)
    with pytest.raises(ShortBufferError) as caught:
        here.processor.send_update_data(here.handle, 0, 0, 0, 0)
    assert caught.value.required == (52, 0)


# --- policies -----------------------------------------------------------------------------------------------------


@pytest.mark.attack("method psp", "sends a guest whose policy says NOSEND", gains="nothing")
def test_nosend_stays(launch: Callable[[Policy], Side], there: Side) -> None:
    here = launch(Policy.NOSEND)
    assert status_of(here.start_sending, there) is Status.POLICY_FAILURE
    assert here.processor.guest_status(here.handle).state is GuestState.RUNNING


def test_without_sev_and_domain_the_chains_are_not_looked_at(launch: Callable[[Policy], Side], there: Side) -> None:
    here = launch(Policy(0))
    here.processor.send_start(here.handle, there.processor.pdh_cert_export().pdh, b"", b"")


def test_domain_asks_for_the_very_same_owner_certificate(launch: Callable[[Policy], Side], there: Side) -> None:
    """Test self-owned platforms, a common owner, and one key with two certificates."""
    here = launch(ALL_CHECKS)
    with pytest.raises(FirmwareError, match="the target's OCA is not this platform's") as caught:
        here.start_sending(there)
    assert caught.value.status == Status.POLICY_FAILURE
    here.processor.shutdown()
    here.processor.init(INIT_ES)
    _share_an_owner(here.processor, there.processor)
    here = Side(here.processor, here.memory, _running(here, ALL_CHECKS))
    started = here.start_sending(there)
    there.start_receiving(here, started)
    here.processor.send_cancel(here.handle)
    certificates = there.processor.endorsed_certificates()
    chain, oca = bytearray(certificates.cert_chain), 2084
    chain[oca + 1572 + 144 + 5] = 1  # the second slot, which nobody looks at
    chain[oca + 1564 : oca + 1572] = b"\x04\x10\x00\x00\x02\x00\x00\x00"
    refused = status_of(
        here.processor.send_start, here.handle, certificates.pdh, bytes(chain), there.processor.ca_chain
    )
    assert refused is Status.POLICY_FAILURE, "all 2084 bytes count"


def _running(side: Side, policy: Policy) -> int:
    processor = side.processor
    handle = processor.launch_start(side.memory, policy, b"", b"")
    processor.activate(handle, 200)
    processor.launch_measure(handle)
    processor.launch_finish(handle)
    return handle


@pytest.mark.parametrize("damage", ["no chain", "unsigned CEK", "another PDH", "altered ASK", "short", "another root"])
def test_sev_asks_for_a_genuine_platform(
    launch: Callable[[Policy], Side], there: Side, damage: str, tmp_path: Path
) -> None:
    here = launch(Policy.SEV)
    certificates, ca_chain = there.processor.endorsed_certificates(), there.processor.ca_chain
    pdh, chain = certificates.pdh, certificates.cert_chain
    match damage:
        case "no chain":
            chain, ca_chain = b"", b""
        case "unsigned CEK":
            chain = there.processor.pdh_cert_export().cert_chain
        case "another PDH":
            pdh = here.processor.pdh_cert_export().pdh
        case "altered ASK":
            ca_chain = ca_chain[:99] + bytes([ca_chain[99] ^ 1]) + ca_chain[100:]
        case "short":
            pdh = pdh[:-1]
        case _:
            # Another manufacturer, whose chips hold together as well as ours do.
            other = SecureProcessor(PlatformIdentity(tmp_path / "host", tmp_path / "maker"))
            other.init()
            foreign = other.endorsed_certificates()
            pdh, chain, ca_chain = foreign.pdh, foreign.cert_chain, other.ca_chain
    with pytest.raises(FirmwareError, match="the policy has SEV, and the target's chain does not hold") as caught:
        here.processor.send_start(here.handle, pdh, chain, ca_chain)
    assert caught.value.status == Status.POLICY_FAILURE
    assert caught.value.__cause__ is not None, "which says which certificate"
    assert here.processor.guest_status(here.handle).state is GuestState.RUNNING


def test_sev_asks_for_an_api_version_of_the_target(launch: Callable[[Policy], Side], there: Side) -> None:
    """Test that the version the owner asked for counts at the target too, but only with SEV."""
    wanted = parse_policy("sev,api=1.55")
    here = launch(wanted)
    identity = there.processor._identity
    with identity.changing():
        identity.regenerate((1, 54))
    with pytest.raises(FirmwareError, match=r"asks for API 1\.55, and the target has an older one") as caught:
        here.start_sending(there)
    assert caught.value.status == Status.POLICY_FAILURE
    without = Side(here.processor, here.memory, _running(here, parse_policy("api=1.55")))
    without.start_sending(there)


def test_a_target_checks_its_own_version(launch: Callable[[Policy], Side], there: Side) -> None:
    here = launch(parse_policy("api=1.56"))
    started = here.start_sending(there)
    with pytest.raises(FirmwareError, match=r"asks for API 1\.56, and this firmware has 1\.55") as caught:
        there.start_receiving(here, started)
    assert caught.value.status == Status.POLICY_FAILURE


def test_an_es_guest_needs_a_target_with_es(launch: Callable[[Policy], Side], there: Side) -> None:
    here = launch(Policy.ES)
    started = here.start_sending(there)
    there.processor.shutdown()
    there.processor.init()
    assert status_of(there.start_receiving, here, started) is Status.UNSUPPORTED


def test_registers_of_a_guest_without_es_are_the_vmms(launch: Callable[[Policy], Side], there: Side) -> None:
    here = launch(Policy(0))
    there.start_receiving(here, here.start_sending(there))
    assert status_of(here.processor.send_update_vmsa, here.handle, 0) is Status.UNSUPPORTED
    receive = there.processor.receive_update_vmsa
    assert status_of(receive, there.handle, 0, bytes(52), bytes(4096)) is Status.UNSUPPORTED


# --- alteration, replay, cancellation -----------------------------------------------------------------------------


@pytest.fixture
def moving(launch: Callable[[Policy], Side], there: Side) -> tuple[Side, Side]:
    """Both sides in the middle of a migration."""
    here = launch(Policy(0))
    there.start_receiving(here, here.start_sending(there))
    return here, there


@pytest.mark.parametrize("place", [4, 19, 20, 51], ids=["iv", "iv's end", "mac", "mac's end"])
def test_an_altered_header_is_refused(moving: tuple[Side, Side], place: int) -> None:
    here, there = moving
    sent = here.processor.send_update_data(here.handle, 0, 4096)
    header = sent.header[:place] + bytes([sent.header[place] ^ 0x80]) + sent.header[place + 1 :]
    receive = there.processor.receive_update_data
    assert status_of(receive, there.handle, header, sent.payload, 0, 4096) is Status.BAD_MEASUREMENT
    assert not any(there.memory.private)


def test_an_altered_or_shortened_payload_is_refused(moving: tuple[Side, Side]) -> None:
    here, there = moving
    sent = here.processor.send_update_data(here.handle, 0, 4096)
    receive = there.processor.receive_update_data
    altered = sent.payload[:-1] + bytes([sent.payload[-1] ^ 1])
    assert status_of(receive, there.handle, sent.header, altered, 0, 4096) is Status.BAD_MEASUREMENT
    assert status_of(receive, there.handle, sent.header, sent.payload[:2048], 0, 2048) is Status.BAD_MEASUREMENT
    compressed = b"\x01" + sent.header[1:]
    assert status_of(receive, there.handle, compressed, sent.payload, 0, 4096) is Status.UNSUPPORTED
    assert not any(there.memory.private)


def test_a_longer_header_is_taken_for_its_first_bytes(moving: tuple[Side, Side]) -> None:
    here, there = moving
    sent = here.processor.send_update_data(here.handle, 0, 4096)
    there.processor.receive_update_data(there.handle, sent.header + b"more", sent.payload, 0, 4096)
    assert there.memory.private[:4096] == here.memory.private[:4096]


def test_packets_may_be_repeated_and_say_no_place(moving: tuple[Side, Side]) -> None:
    """Test what AMD's protocol does not promise, so that nobody relies on it: neither order nor place is sealed."""
    here, there = moving
    sent = here.processor.send_update_data(here.handle, 0, 4096)
    for gpa in (0, 4096, 0):
        there.processor.receive_update_data(there.handle, sent.header, sent.payload, gpa, 4096)
    assert there.memory.private[:4096] == there.memory.private[4096:8192] == here.memory.private[:4096]


def test_packets_of_another_session_are_refused(moving: tuple[Side, Side]) -> None:
    """Test that a cancelled send and the next one have nothing in common."""
    here, there = moving
    stale = here.processor.send_update_data(here.handle, 0, 4096)
    here.processor.send_cancel(here.handle)
    second = Side(there.processor, Memory(bytearray(SIZE)))
    started = here.start_sending(second)
    pdh = here.processor.pdh_cert_export().pdh
    second.handle = second.processor.receive_start(second.memory, started.policy, pdh, started.session)
    second.processor.activate(second.handle, 101)
    receive = second.processor.receive_update_data
    assert status_of(receive, second.handle, stale.header, stale.payload, 0, 4096) is Status.BAD_MEASUREMENT
    sent = here.processor.send_update_data(here.handle, 0, 4096)
    receive(second.handle, sent.header, sent.payload, 0, 4096)


def test_a_cancelled_guest_runs_on_and_can_be_sent_again(moving: tuple[Side, Side]) -> None:
    here, there = moving
    here.processor.send_cancel(here.handle)
    assert here.processor.guest_status(here.handle).state is GuestState.RUNNING
    assert here.processor._guests[here.handle].transport is None
    assert status_of(here.processor.send_update_data, here.handle, 0, 4096) is Status.INVALID_GUEST_STATE
    here.start_sending(there)


def test_a_sent_guest_stays_sent(moving: tuple[Side, Side]) -> None:
    here, there = moving
    here.processor.send_finish(here.handle)
    for again in (here.processor.send_cancel, here.processor.send_finish):
        assert status_of(again, here.handle) is Status.INVALID_GUEST_STATE
    assert status_of(here.start_sending, there) is Status.INVALID_GUEST_STATE
    here.processor.deactivate(here.handle)
    assert status_of(here.processor.activate, here.handle, 102) is Status.INVALID_GUEST_STATE
    here.processor.decommission(here.handle)


@pytest.mark.attack("method psp", "takes a session to another platform, or under another policy", gains="nothing")
def test_a_session_is_for_one_platform_and_one_policy(launch: Callable[[Policy], Side], there: Side) -> None:
    here = launch(Policy.NODBG)
    started = here.start_sending(there)
    pdh = here.processor.pdh_cert_export().pdh
    receive = there.processor.receive_start
    assert status_of(receive, there.memory, Policy(0), pdh, started.session) is Status.BAD_MEASUREMENT
    assert status_of(here.processor.receive_start, there.memory, Policy.NODBG, pdh, started.session) is (
        Status.BAD_MEASUREMENT
    )
    there.processor.pdh_gen()
    assert status_of(receive, there.memory, Policy.NODBG, pdh, started.session) is Status.BAD_MEASUREMENT


@pytest.mark.attack(
    "method psp",
    "receives one session's packets twice",
    gains="as AMD's protocol gives: a second copy; NOSEND forbids it",
)
def test_a_guest_is_received_twice_from_one_session(launch: Callable[[Policy], Side], there: Side) -> None:
    """Test the fork that AMD's protocol allows, which is why owners set NOSEND."""
    here = launch(Policy(0))
    started = here.start_sending(there)
    pdh = here.processor.pdh_cert_export().pdh
    handles = {there.processor.receive_start(there.memory, started.policy, pdh, started.session) for _ in range(2)}
    assert len(handles) == 2
