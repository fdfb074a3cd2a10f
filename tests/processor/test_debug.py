"""DBG_DECRYPT and DBG_ENCRYPT."""

from __future__ import annotations

import pytest

from sealift.errors import FirmwareError
from sealift.sev.policy import Policy
from sealift.sev.status import Status
from sealift.silicon.processor.asids import fitting
from sealift.silicon.processor.firmware import INIT_ES, SecureProcessor

from .memory import Memory, status_of


def _launch(processor: SecureProcessor, memory: Memory, policy: Policy) -> int:
    if Policy.ES in policy:
        processor.shutdown()
        processor.init(INIT_ES)
    handle = processor.launch_start(memory, policy, b"", b"")
    processor.activate(handle, fitting(policy).start)
    processor.launch_update_data(handle, 0, 4096)
    return handle


def _seen(processor: SecureProcessor, handle: int, gpa: int, length: int) -> bytes:
    data = bytearray(length)
    processor.dbg_decrypt(handle, gpa, memoryview(data))
    return bytes(data)


def test_a_host_that_may_debug_sees_what_the_guest_sees(processor: SecureProcessor, memory: Memory) -> None:
    content = bytes(memory.shared)
    handle = _launch(processor, memory, Policy(0))
    assert _seen(processor, handle, 16, 4080) == content[16:4096]
    processor.dbg_encrypt(handle, 32, b"from the debugger".ljust(32))
    assert _seen(processor, handle, 32, 16) == b"from the debugge"
    assert memory.private[:32] == content[:32]
    assert memory.private[64:4096] == content[64:4096]


def test_a_host_that_may_debug_sees_and_sets_registers_in_the_save_area(
    processor: SecureProcessor, memory: Memory
) -> None:
    handle = _launch(processor, memory, Policy.ES)
    processor.launch_update_vmsa(handle, 0, b"\x5a" * 4096)
    assert processor.dbg_decrypt_vmsa(handle, 0) == b"\x5a" * 4096
    processor.dbg_encrypt_vmsa(handle, 0, b"\xa5" * 4096)
    assert memory.vmsas[0] == b"\xa5" * 4096
    assert status_of(processor.dbg_decrypt_vmsa, handle, 1) is Status.INVALID_ADDRESS
    assert status_of(processor.dbg_encrypt_vmsa, handle, 1, bytes(4096)) is Status.INVALID_ADDRESS
    assert 1 not in memory.vmsas


def test_only_whole_blocks_can_be_debugged(processor: SecureProcessor, memory: Memory) -> None:
    handle = _launch(processor, memory, Policy(0))
    assert status_of(processor.dbg_decrypt, handle, 8, memoryview(bytearray(16))) is Status.INVALID_ADDRESS
    assert status_of(processor.dbg_decrypt, handle, 0, memoryview(bytearray(17))) is Status.INVALID_LENGTH
    assert status_of(processor.dbg_encrypt, handle, 0, bytes(8)) is Status.INVALID_LENGTH
    assert status_of(processor.dbg_decrypt, handle, 1 << 40, memoryview(bytearray(16))) is Status.INVALID_ADDRESS


def test_nodbg_keeps_the_host_out(processor: SecureProcessor, memory: Memory) -> None:
    handle = _launch(processor, memory, Policy.NODBG | Policy.ES)
    processor.launch_update_vmsa(handle, 0, bytes(4096))
    before, registers = bytes(memory.private), memory.vmsas[0]
    for look in (
        lambda: processor.dbg_decrypt(handle, 0, memoryview(bytearray(16))),
        lambda: processor.dbg_encrypt(handle, 0, bytes(16)),
        lambda: processor.dbg_decrypt_vmsa(handle, 0),
        lambda: processor.dbg_encrypt_vmsa(handle, 0, bytes(4096)),
    ):
        with pytest.raises(FirmwareError, match="NODBG") as caught:
            look()
        assert caught.value.status == Status.POLICY_FAILURE
    assert bytes(memory.private) == before
    assert memory.vmsas[0] == registers
