"""Requests that move a guest from one secure processor to another: SEND_*, RECEIVE_* and what travels beside them.

What a host does with the commands is here: the guest's own handler stands back while its secure processor sends it,
no vCPU is in the guest when SEND_FINISH closes it, and nothing of it stays in memory afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sealift.errors import SealiftError, StreamError
from sealift.silicon.process.bitmap import BitmapArea
from sealift.silicon.process.packets import PacketDesk
from sealift.silicon.process.vm import VirtualMachine
from sealift.silicon.processor.firmware import SecureProcessor
from sealift.wire import platform as wire


class TransferService:
    """Answers them for one VM.

    Args:
        processor: the host's.
        vm: the VM.
        bitmap: where sets of pages are exchanged.
        handle: the guest's, 0 before there is one.

    Attributes:
        handlers: by type of request.
        packets: slots for packets; made when they are first asked for.
    """

    def __init__(
        self, processor: SecureProcessor, vm: VirtualMachine, bitmap: BitmapArea, handle: Callable[[], int]
    ) -> None:
        self._processor = processor
        self._vm = vm
        self._bitmap = bitmap
        self._handle = handle
        self._desk: PacketDesk | None = None
        self.handlers: dict[type[wire.Message], Callable[[Any], wire.Reply]] = {
            wire.SendStart: self._send_start,
            wire.GetPrivateDirtyLog: self._private_dirty,
            wire.SendUpdateData: self._send_update_data,
            wire.SendUpdateVmsa: self._send_update_vmsa,
            wire.SealStream: self._seal_stream,
            wire.SendFinish: self._send_finish,
            wire.SendCancel: self._send_cancel,
            wire.ReceiveUpdateData: self._receive_update_data,
            wire.ReceiveUpdateVmsa: self._receive_update_vmsa,
            wire.CheckStream: self._check_stream,
            wire.ReceiveFinish: self._receive_finish,
            wire.SetPageStates: self._set_page_states,
            wire.GetVmState: self._get_vm_state,
            wire.SetVmState: self._set_vm_state,
            wire.GetVcpuState: self._get_vcpu_state,
            wire.SetVcpuState: self._set_vcpu_state,
        }

    @property
    def packets(self) -> PacketDesk:
        """The desk where packets are laid out and picked up."""
        if self._desk is None:
            self._desk = PacketDesk()
        return self._desk

    # --- the source ----------------------------------------------------------------------------------------------

    def _send_start(self, request: wire.SendStart) -> wire.SendStarted:
        self._vm.leave_to_processor()
        try:
            started = self._processor.send_start(self._handle(), request.pdh, request.plat_certs, request.amd_certs)
        except SealiftError:
            self._vm.reclaim()
            raise
        self._vm.memory.mark_all_unsent()
        self.packets.begin(started.session)
        return wire.SendStarted(int(started.policy), started.session)

    def _private_dirty(self, _: wire.GetPrivateDirtyLog) -> wire.Count:
        return self._bitmap.leave(self._vm.memory.take_unsent())

    def _send_update_data(self, request: wire.SendUpdateData) -> wire.PacketSent:
        packet = self._processor.send_update_data(self._handle(), request.gpa, request.length)
        return wire.PacketSent(self.packets.lay_out(packet, request.slot))

    def _send_update_vmsa(self, request: wire.SendUpdateVmsa) -> wire.PacketSent:
        self._vm.require_stopped(request.index)
        packet = self._processor.send_update_vmsa(self._handle(), request.index)
        return wire.PacketSent(self.packets.lay_out(packet, request.slot))

    def _seal_stream(self, request: wire.SealStream) -> wire.StreamSealed:
        return wire.StreamSealed(self._processor.seal_stream(self._handle(), request.digest))

    def _send_finish(self, _: wire.SendFinish) -> wire.Done:
        with self._vm.gate.barring():
            self._processor.send_finish(self._handle())
            self._vm.memory.forget()
        return wire.Done()

    def _send_cancel(self, _: wire.SendCancel) -> wire.Done:
        self._processor.send_cancel(self._handle())
        self._vm.reclaim()
        return wire.Done()

    # --- the target ----------------------------------------------------------------------------------------------

    def _receive_update_data(self, request: wire.ReceiveUpdateData) -> wire.Done:
        packet = self.packets.pick_up(request.slot, request.offset, request.length)
        self._processor.receive_update_data(self._handle(), packet.header, packet.payload, request.gpa, request.length)
        return wire.Done()

    def _receive_update_vmsa(self, request: wire.ReceiveUpdateVmsa) -> wire.Done:
        self._vm.require_stopped(request.index)
        packet = self.packets.pick_up(request.slot, request.offset, request.length)
        self._processor.receive_update_vmsa(self._handle(), request.index, packet.header, packet.payload)
        return wire.Done()

    def _check_stream(self, request: wire.CheckStream) -> wire.Done:
        self._processor.check_stream(self._handle(), request.digest, request.mac)
        return wire.Done()

    def _receive_finish(self, _: wire.ReceiveFinish) -> wire.Done:
        with self._vm.gate.barring():  # nobody writes to what is being made a hole
            self._processor.receive_finish(self._handle())
            self._vm.received()
        return wire.Done()

    def _set_page_states(self, _: wire.SetPageStates) -> wire.Done:
        self._vm.memory.load_shared(self._bitmap.taken())
        return wire.Done()

    # --- what travels in clear -----------------------------------------------------------------------------------

    def _get_vm_state(self, _: wire.GetVmState) -> wire.VmState:
        return wire.VmState(self._vm.engine.name, self._vm.engine.save())

    def _set_vm_state(self, request: wire.SetVmState) -> wire.Done:
        engine = self._vm.engine
        if request.engine != engine.name:
            raise StreamError(f"the guest ran on engine {request.engine}; this platform runs guests on {engine.name}")
        engine.restore(request.state)
        return wire.Done()

    def _get_vcpu_state(self, request: wire.GetVcpuState) -> wire.VcpuState:
        return wire.VcpuState(self._vm.require_stopped(request.index).vcpu.save_visible())

    def _set_vcpu_state(self, request: wire.SetVcpuState) -> wire.Done:
        self._vm.load_vcpu(request.index, request.state)
        return wire.Done()
