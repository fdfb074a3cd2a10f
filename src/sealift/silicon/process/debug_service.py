"""Requests that look into a guest from outside: DBG_DECRYPT and DBG_ENCRYPT over the debug window, and registers.

What a policy forbids the secure processor refuses; here is what its host adds. The guest is written to only while its
vCPUs may run: once its memory is handed over, a write would reach nobody, or one host of two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sealift.address import PAGE_SIZE
from sealift.errors import RefusedError
from sealift.silicon.memory.plane import Plane
from sealift.silicon.process.vm import VirtualMachine
from sealift.silicon.processor.firmware import SecureProcessor
from sealift.wire import platform as wire


class DebugService:
    """Answers them for one VM.

    Args:
        processor: the host's.
        vm: the VM.
        handle: the guest's, 0 before there is one.

    Attributes:
        handlers: by type of request.
        window: where data lies; made when it is first asked for.
    """

    def __init__(self, processor: SecureProcessor, vm: VirtualMachine, handle: Callable[[], int]) -> None:
        self._processor = processor
        self._vm = vm
        self._handle = handle
        self._window: Plane | None = None
        self.handlers: dict[type[wire.Message], Callable[[Any], wire.Reply]] = {
            wire.DbgDecrypt: self._decrypt,
            wire.DbgEncrypt: self._encrypt,
            wire.DbgDecryptVmsa: self._decrypt_vmsa,
            wire.DbgEncryptVmsa: self._encrypt_vmsa,
            wire.InvalidateCode: self._invalidate_code,
            wire.GetSystemRegisters: self._system_registers,
        }

    @property
    def window(self) -> Plane:
        """The debug window."""
        if self._window is None:
            self._window = Plane("sealift-debug", wire.DEBUG_WINDOW)
        return self._window

    def _decrypt(self, request: wire.DbgDecrypt) -> wire.Done:
        self._processor.dbg_decrypt(self._handle(), request.gpa, self._part(request.length))
        return wire.Done()

    def _encrypt(self, request: wire.DbgEncrypt) -> wire.Done:
        data = bytes(self._part(request.length))
        with self._vm.gate.entered():
            self._processor.dbg_encrypt(self._handle(), request.gpa, data)
        return wire.Done()

    def _decrypt_vmsa(self, request: wire.DbgDecryptVmsa) -> wire.Done:
        self._vm.require_stopped(request.index)
        self._part(PAGE_SIZE)[:] = self._processor.dbg_decrypt_vmsa(self._handle(), request.index)
        return wire.Done()

    def _encrypt_vmsa(self, request: wire.DbgEncryptVmsa) -> wire.Done:
        page = bytes(self._part(PAGE_SIZE))
        with self._vm.gate.entered():
            self._vm.require_stopped(request.index)
            self._processor.dbg_encrypt_vmsa(self._handle(), request.index, page)
        return wire.Done()

    def _part(self, length: int) -> memoryview:
        if not 0 < length <= wire.DEBUG_WINDOW:
            raise RefusedError(f"the debug window has room for 1 to {wire.DEBUG_WINDOW} bytes, not for {length}")
        return self.window.data[:length]

    def _invalidate_code(self, request: wire.InvalidateCode) -> wire.Done:
        self._vm.require_pages(request.first, request.count)
        self._vm.memory.invalidate(request.first, request.count)
        return wire.Done()

    def _system_registers(self, request: wire.GetSystemRegisters) -> wire.VcpuSystemRegisters:
        return wire.VcpuSystemRegisters(self._vm.require_stopped(request.index).vcpu.system_registers())
