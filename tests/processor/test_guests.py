"""ASIDs, guests that come and go, and attestation reports."""

from __future__ import annotations

import pytest

from sealift.sev.certificate import Certificate
from sealift.sev.policy import DEFAULT_POLICY, Policy
from sealift.sev.report import AttestationReport
from sealift.sev.status import Status
from sealift.silicon.processor.asids import MAX_ASID, MIN_SEV_ASID, fitting
from sealift.silicon.processor.firmware import INIT_ES, SecureProcessor
from sealift.silicon.processor.room import ShortBufferError

from .memory import Memory, offer, status_of


@pytest.fixture
def es(processor: SecureProcessor) -> SecureProcessor:
    """A platform for guests of both kinds."""
    processor.shutdown()
    processor.init(INIT_ES)
    return processor


def test_each_kind_of_guest_has_its_asids(es: SecureProcessor, memory: Memory) -> None:
    plain, encrypted = (es.launch_start(memory, policy, b"", b"") for policy in (0, Policy.ES))
    for asid in (0, -1, MAX_ASID + 1):
        assert status_of(es.activate, plain, asid) is Status.INVALID_ASID
    for handle, asid in ((plain, 1), (plain, MIN_SEV_ASID - 1), (encrypted, MIN_SEV_ASID), (encrypted, MAX_ASID)):
        assert status_of(es.activate, handle, asid) is Status.INVALID_ASID
    es.activate(plain, MIN_SEV_ASID)
    es.activate(encrypted, MIN_SEV_ASID - 1)
    assert [es.guest_status(handle).asid for handle in (plain, encrypted)] == [MIN_SEV_ASID, MIN_SEV_ASID - 1]
    assert fitting(Policy.ES)[-1] + 1 == fitting(Policy(0))[0]
    assert fitting(Policy(0))[-1] == MAX_ASID


def test_an_asid_has_one_guest_and_a_guest_one_asid(processor: SecureProcessor, memory: Memory) -> None:
    first, second = (processor.launch_start(memory, 0, b"", b"") for _ in range(2))
    processor.activate(first, 200)
    assert status_of(processor.activate, second, 200) is Status.ASID_OWNED
    assert status_of(processor.activate, first, 200) is Status.ASID_OWNED
    assert status_of(processor.activate, first, 201) is Status.ACTIVE
    assert status_of(processor.deactivate, second) is Status.INACTIVE
    assert status_of(processor.decommission, first) is Status.ACTIVE


def test_an_asid_is_reused_only_after_wbinvd_and_df_flush(processor: SecureProcessor, memory: Memory) -> None:
    """Test that no guest gets an ASID under which caches may hold another guest's lines, whatever is left out."""
    handle = processor.launch_start(memory, 0, b"", b"")
    processor.activate(handle, 200)
    processor.deactivate(handle)
    assert status_of(processor.activate, handle, 200) is Status.DFFLUSH_REQUIRED
    assert status_of(processor.df_flush) is Status.WBINVD_REQUIRED
    processor.wbinvd()
    assert status_of(processor.activate, handle, 200) is Status.DFFLUSH_REQUIRED
    processor.activate(handle, 201)
    processor.deactivate(handle)
    assert status_of(processor.df_flush) is Status.WBINVD_REQUIRED, "201 was given up after the last WBINVD"
    processor.wbinvd()
    processor.df_flush()
    processor.activate(handle, 200)


def test_df_flush_without_anything_to_flush_succeeds(processor: SecureProcessor) -> None:
    processor.df_flush()


def test_what_needs_an_asid_is_inactive_without_one(processor: SecureProcessor, memory: Memory) -> None:
    handle = processor.launch_start(memory, 0, b"", b"")
    assert status_of(processor.launch_update_data, handle, 0, 16) is Status.INACTIVE
    processor.activate(handle, 100)
    processor.launch_update_data(handle, 0, 16)
    processor.deactivate(handle)
    assert status_of(processor.launch_update_data, handle, 0, 16) is Status.INACTIVE
    assert status_of(processor.dbg_decrypt, handle, 0, memoryview(bytearray(16))) is Status.INACTIVE


def test_a_report_is_the_peks_word_on_digest_and_policy(processor: SecureProcessor, memory: Memory) -> None:
    offered = offer(processor)
    handle = processor.launch_start(memory, DEFAULT_POLICY, offered.dh_cert, offered.session)
    processor.activate(handle, 100)
    processor.launch_update_data(handle, 0, 4096)
    assert status_of(processor.attestation, handle, bytes(16)) is Status.INVALID_GUEST_STATE
    processor.launch_measure(handle)
    digest = processor._guests[handle].launch_digest
    nonce = bytes(range(16))
    pek = Certificate.decode(processor.pdh_cert_export().cert_chain[:2084])
    first = processor.attestation(handle, nonce)
    processor.launch_finish(handle)
    for data in (first, processor.attestation(handle, nonce)):
        report = AttestationReport.decode(data)
        assert report.encode() == data
        assert (report.mnonce, report.launch_digest, report.policy) == (nonce, digest, DEFAULT_POLICY)
        assert (report.usage, report.algorithm, report.reserved) == (0x1002, 2, 0)
        assert report.verifies(pek.key())
    for place in (0, 20, 48, 0x34, 0x38, 0x40, 0x40 + 72):
        altered = bytearray(first)
        altered[place] ^= 1
        assert not AttestationReport.decode(bytes(altered)).verifies(pek.key())


def test_a_report_tells_its_size(processor: SecureProcessor, memory: Memory) -> None:
    handle = processor.launch_start(memory, 0, b"", b"")
    processor.launch_measure(handle)
    with pytest.raises(ShortBufferError) as caught:
        processor.attestation(handle, bytes(16), 0)
    assert (caught.value.status, caught.value.required) == (Status.INVALID_LENGTH, (208,))
