from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import sevsnpmeasure.guest
from sevsnpmeasure.sev_mode import SevMode

from sealift.sev import keys, measurement, secret, session
from sealift.sev.certificate import Certificate
from sealift.sev.policy import DEFAULT_POLICY, Policy, parse_policy
from sealift.sev.secret import LUKS_KEY_GUID, SecretEntry
from sealift.sev.session import OwnerSession, TransportKeys
from sealift.sev.status import Status
from sealift.silicon.processor.asids import fitting
from sealift.silicon.processor.firmware import GUEST_SLOTS, INIT_ES, VERSION, SecureProcessor
from sealift.silicon.processor.room import ShortBufferError
from sealift.silicon.processor.states import GuestState

from .memory import Memory, offer, status_of

TABLE = secret.build_table([SecretEntry(LUKS_KEY_GUID, b"open sesame")])


def _start(processor: SecureProcessor, memory: Memory, policy: Policy = DEFAULT_POLICY) -> tuple[int, OwnerSession]:
    offered = offer(processor, policy)
    handle = processor.launch_start(memory, policy, offered.dh_cert, offered.session)
    processor.activate(handle, fitting(policy).start)
    return handle, offered


# --- a launch from end to end -------------------------------------------------------------------------------------


def test_a_launch_from_end_to_end(processor: SecureProcessor, memory: Memory) -> None:
    """Test that the owner recomputes the measurement, and that its secret arrives in private memory."""
    image = bytes(memory.shared)
    handle, offered = _start(processor, memory)
    processor.launch_update_data(handle, 4096, 8192)
    processor.launch_update_data(handle, 0, 16)
    digest = hashlib.sha256(image[4096:12288] + image[:16]).digest()
    measure = processor.launch_measure(handle)
    assert measurement.matches(measure, offered.transport.tik, VERSION, DEFAULT_POLICY, digest)
    assert (
        measure[:32]
        != measurement.measure(
            offered.transport.tik, VERSION, DEFAULT_POLICY, hashlib.sha256(image).digest(), measure[32:]
        )[:32]
    )
    header, payload = secret.make_packet(offered.transport, measure, TABLE)
    processor.launch_secret(handle, header, payload, 0x2000, len(TABLE))
    processor.launch_finish(handle)
    assert memory.private[0x2000 : 0x2000 + len(TABLE)] == TABLE
    assert b"open sesame" not in memory.shared
    facts = processor.facts(handle)
    assert (facts.policy, facts.state, facts.measure) == (DEFAULT_POLICY, GuestState.RUNNING, measure)
    assert processor.guest_status(handle).state is GuestState.RUNNING


def test_the_measured_bytes_are_the_guests_not_the_vmms(processor: SecureProcessor) -> None:
    """Test that a VMM which rewrites its own plane while the measurement runs changes nothing measured."""

    class Racing(Memory):
        def move_to_private(self, gpa: int, length: int) -> list[memoryview]:
            parts = list(super().move_to_private(gpa, length))
            self.shared[gpa : gpa + length] = b"!" * length
            return parts

    memory = Racing(bytearray(os.urandom(8192)))
    image = bytes(memory.shared)
    handle, offered = _start(processor, memory)
    processor.launch_update_data(handle, 0, 8192)
    digest = hashlib.sha256(image).digest()
    assert hashlib.sha256(memory.private).digest() == digest
    measure = processor.launch_measure(handle)
    assert measurement.matches(measure, offered.transport.tik, VERSION, DEFAULT_POLICY, digest)


def test_others_predict_our_launch_digest(processor: SecureProcessor, tmp_path: Path) -> None:
    """Test against sev-snp-measure, for an image loaded in one piece and in many."""
    image = os.urandom(64 * 1024)
    file = tmp_path / "firmware.fd"
    file.write_bytes(image)
    predicted = sevsnpmeasure.guest.calc_launch_digest(SevMode.SEV, 1, 0, str(file), "", "", "", 0)
    handle, offered = _start(processor, Memory(bytearray(image)))
    for start in range(0, len(image), 16 * 1024):
        processor.launch_update_data(handle, start, 16 * 1024)
    measure = processor.launch_measure(handle)
    assert measurement.matches(measure, offered.transport.tik, VERSION, DEFAULT_POLICY, predicted)


def test_a_secret_may_be_injected_twice_but_not_after_finish(processor: SecureProcessor, memory: Memory) -> None:
    handle, offered = _start(processor, memory)
    measure = processor.launch_measure(handle)
    header, payload = secret.make_packet(offered.transport, measure, TABLE)
    for gpa in (0, 0x1000):
        processor.launch_secret(handle, header, payload, gpa, len(TABLE))
    processor.launch_finish(handle)
    again = status_of(processor.launch_secret, handle, header, payload, 0, len(TABLE))
    assert again is Status.INVALID_GUEST_STATE


def test_a_secret_of_another_launch_is_refused(processor: SecureProcessor, memory: Memory) -> None:
    """Test that replaying a whole launch does not replay its secret: every measurement has its nonce."""
    handle, offered = _start(processor, memory)
    measure = processor.launch_measure(handle)
    header, payload = secret.make_packet(offered.transport, measure, TABLE)
    processor.close()
    processor.init()
    replayed = processor.launch_start(memory, DEFAULT_POLICY, offered.dh_cert, offered.session)
    processor.activate(replayed, fitting(DEFAULT_POLICY).start)
    processor.launch_measure(replayed)
    refused = status_of(processor.launch_secret, replayed, header, payload, 0, len(TABLE))
    assert refused is Status.BAD_MEASUREMENT
    assert not any(memory.private)


def test_a_launch_without_an_owner_is_measured_under_zeros(processor: SecureProcessor, memory: Memory) -> None:
    handle = processor.launch_start(memory, 0xFF00_FFC1, b"", b"")
    measure = processor.launch_measure(handle)
    empty = hashlib.sha256(b"").digest()
    assert measurement.matches(measure, TransportKeys.absent().tik, VERSION, Policy(0xFF00_FFC1), empty)


# --- LAUNCH_START -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "status"),
    [
        (parse_policy("nodbg,api=1.56"), Status.POLICY_FAILURE),
        (parse_policy("nodbg,api=2.0"), Status.POLICY_FAILURE),
        (Policy(0x40), Status.POLICY_FAILURE),
        (Policy(0x8000), Status.POLICY_FAILURE),
        (Policy.ES, Status.UNSUPPORTED),
        (parse_policy("es,api=9.0"), Status.POLICY_FAILURE),
    ],
    ids=lambda value: value.describe() if isinstance(value, Policy) else value.name,
)
def test_policies_that_cannot_be_kept_are_refused(
    processor: SecureProcessor, memory: Memory, policy: Policy, status: Status
) -> None:
    offered = offer(processor, policy)
    assert status_of(processor.launch_start, memory, policy, offered.dh_cert, offered.session) is status


def test_policies_of_this_version_and_older_are_kept(processor: SecureProcessor, memory: Memory) -> None:
    handle, _ = _start(processor, memory, parse_policy("nodbg,noks,nosend,domain,sev,api=1.55"))
    assert processor.facts(handle).policy.api == (1, 55)


def test_sharing_a_key_needs_a_guest_and_policies_that_allow_it(processor: SecureProcessor, memory: Memory) -> None:
    def share(policy: Policy, handle: int) -> Status:
        offered = offer(processor, policy)
        return status_of(processor.launch_start, memory, policy, offered.dh_cert, offered.session, handle)

    assert share(DEFAULT_POLICY, 7) is Status.INVALID_GUEST
    handle, _ = _start(processor, memory)
    assert share(Policy.NODBG, handle) is Status.POLICY_FAILURE
    offered = offer(processor, DEFAULT_POLICY)
    processor.launch_start(memory, DEFAULT_POLICY, offered.dh_cert, offered.session, handle)
    processor.close()
    processor.init()
    handle, _ = _start(processor, memory, Policy.NOKS)
    assert share(Policy.NOKS, handle) is Status.POLICY_FAILURE


def test_firmware_has_contexts_for_so_many_guests(processor: SecureProcessor, memory: Memory) -> None:
    handles = {processor.launch_start(memory, 0, b"", b"") for _ in range(GUEST_SLOTS)}
    assert len(handles) == GUEST_SLOTS == processor.platform_status().guests == 1024
    assert status_of(processor.launch_start, memory, 0, b"", b"") is Status.RESOURCE_LIMIT
    processor.decommission(handles.pop())
    assert processor.launch_start(memory, 0, b"", b"") not in handles


def test_handles_are_not_used_again(processor: SecureProcessor, memory: Memory) -> None:
    first, _ = _start(processor, memory)
    processor.close()
    processor.init()
    second, _ = _start(processor, memory)
    assert first != second
    assert status_of(processor.launch_measure, first) is Status.INVALID_GUEST


def test_a_session_for_another_host_does_not_open_here(processor: SecureProcessor, memory: Memory) -> None:
    here = Certificate.decode(processor.pdh_cert_export().pdh)
    elsewhere = Certificate.of(here.usage, here.algorithm, keys.generate().public_key())
    offered = session.offer(elsewhere, DEFAULT_POLICY)
    refused = status_of(processor.launch_start, memory, DEFAULT_POLICY, offered.dh_cert, offered.session)
    assert refused is Status.BAD_MEASUREMENT


# --- the other launch commands ------------------------------------------------------------------------------------


def test_a_refused_update_measures_and_moves_nothing(processor: SecureProcessor, memory: Memory) -> None:
    handle, offered = _start(processor, memory)
    update, before = processor.launch_update_data, bytes(memory.shared)
    for gpa in (8, -16, 0x4000, 1 << 64):
        assert status_of(update, handle, gpa, 16) is Status.INVALID_ADDRESS
    for length in (0, -16, 8, 4097):
        assert status_of(update, handle, 0, length) is Status.INVALID_LENGTH
    assert status_of(update, handle, 0x3000, 0x2000) is Status.INVALID_ADDRESS
    assert (bytes(memory.shared), any(memory.private)) == (before, False)
    measure = processor.launch_measure(handle)
    empty = hashlib.sha256(b"").digest()
    assert measurement.matches(measure, offered.transport.tik, VERSION, DEFAULT_POLICY, empty)


def test_registers_are_measured_as_they_are_and_hidden(processor: SecureProcessor, memory: Memory) -> None:
    """Test that VMSAs go on with the digest of the image, in the order of the calls."""
    processor.shutdown()
    processor.init(INIT_ES)
    handle, offered = _start(processor, memory, Policy.ES)
    image, pages = bytes(memory.shared[:4096]), [os.urandom(4096) for _ in range(2)]
    processor.launch_update_data(handle, 0, 4096)
    for vcpu, page in enumerate(pages):
        processor.launch_update_vmsa(handle, vcpu, page)
    assert status_of(processor.launch_update_vmsa, handle, 2, pages[0]) is Status.INVALID_ADDRESS
    for length in (0, 4095, 4112):
        assert status_of(processor.launch_update_vmsa, handle, 0, bytes(length)) is Status.INVALID_LENGTH
    digest = hashlib.sha256(image + b"".join(pages)).digest()
    measure = processor.launch_measure(handle)
    assert measurement.matches(measure, offered.transport.tik, VERSION, Policy.ES, digest)
    assert [memory.vmsas[vcpu] for vcpu in range(2)] == pages


def test_a_refused_secret_reaches_no_memory(processor: SecureProcessor, memory: Memory) -> None:
    handle, offered = _start(processor, memory)
    header, payload = secret.make_packet(offered.transport, processor.launch_measure(handle), TABLE)
    inject, size = processor.launch_secret, len(TABLE)
    damaged = bytes((payload[0] ^ 1,)) + payload[1:]
    assert status_of(inject, handle, header, damaged, 0, size) is Status.BAD_MEASUREMENT
    assert status_of(inject, handle, header, payload, 0x4000, size) is Status.INVALID_ADDRESS
    assert status_of(inject, handle, header, payload, 0, size + 16) is Status.INVALID_LENGTH
    too_long = secret.SIZE_LIMIT + 16
    assert status_of(inject, handle, bytes(52), bytes(too_long), 0, too_long) is Status.INVALID_LENGTH
    assert not any(memory.private)


def test_launch_measure_tells_its_size_and_closes_the_measurement(processor: SecureProcessor, memory: Memory) -> None:
    handle, _ = _start(processor, memory)
    with pytest.raises(ShortBufferError) as caught:
        processor.launch_measure(handle, 0)
    assert (caught.value.status, caught.value.required) == (Status.INVALID_LENGTH, (48,))
    processor.launch_measure(handle, 48)
    assert status_of(processor.launch_measure, handle) is Status.INVALID_GUEST_STATE


def test_finish_forgets_the_transport_keys(processor: SecureProcessor, memory: Memory) -> None:
    handle, offered = _start(processor, memory)
    shown = repr(processor._guests[handle])
    assert offered.transport.tik.hex() not in shown
    assert repr(offered.transport.tik) not in shown
    processor.launch_measure(handle)
    processor.launch_finish(handle)
    assert processor._guests[handle].transport is None
    assert status_of(processor.launch_finish, handle) is Status.INVALID_GUEST_STATE
