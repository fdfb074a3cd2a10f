"""DBG_DECRYPT and DBG_ENCRYPT."""

from __future__ import annotations

import pytest

from sealift.errors import FirmwareError
from sealift.sev.policy import Policy
from sealift.sev.status import Status
from sealift.silicon.processor.firmware import SecureProcessor

from .memory import Memory


def _launch(processor: SecureProcessor, memory: Memory, policy: int) -> int:
    handle = processor.launch_start(memory, policy, b"", b"")
    processor.activate(handle, 100)
    processor.launch_update_data(handle, 0, 4096)
    return handle


def test_a_host_that_may_debug_sees_what_the_guest_sees(processor: SecureProcessor, memory: Memory) -> None:
    content = bytes(memory.shared)
    handle = _launch(processor, memory, 0)
    assert processor.dbg_decrypt(handle, 16, 4080) == content[16:4096]
    processor.dbg_encrypt(handle, 32, b"from the debugger".ljust(32))
    assert processor.dbg_decrypt(handle, 32, 16) == b"from the debugge"
    assert memory.private[:32] == content[:32]
    assert memory.private[64:4096] == content[64:4096]


def test_nodbg_keeps_the_host_out(processor: SecureProcessor, memory: Memory) -> None:
    handle = _launch(processor, memory, Policy.NODBG)
    before = bytes(memory.private)
    for look in (
        lambda: processor.dbg_decrypt(handle, 0, 16),
        lambda: processor.dbg_encrypt(handle, 0, bytes(16)),
    ):
        with pytest.raises(FirmwareError, match="NODBG") as caught:
            look()
        assert caught.value.status == Status.POLICY_FAILURE
    assert bytes(memory.private) == before
