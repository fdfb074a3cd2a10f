"""The control socket: one request after the other, each checked against the table of phases, then carried out."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Any

from sealift.address import Gpa, RamBlock, RamLayout
from sealift.errors import InternalError, LostError, RefusedError, SealiftError, StreamError
from sealift.guest.handler.digest import handler_digest
from sealift.sev.policy import Policy
from sealift.silicon.engines.choice import Chosen
from sealift.silicon.engines.interface import VmShape
from sealift.silicon.process.bitmap import BitmapArea
from sealift.silicon.process.debug_service import DebugService
from sealift.silicon.process.platform_service import PlatformService
from sealift.silicon.process.ring import SLOT_SIZE, SLOTS
from sealift.silicon.process.transfer_service import TransferService
from sealift.silicon.process.vm import VirtualMachine
from sealift.silicon.processor import asids
from sealift.silicon.processor.firmware import SecureProcessor
from sealift.silicon.processor.states import GuestState
from sealift.wire import platform as wire
from sealift.wire.channel import Channel, socket_pair
from sealift.wire.exits import LinkParts, exit_link
from sealift.wire.failure import to_failed
from sealift.wire.obstacle import Code, Obstacle
from sealift.wire.platform import ALLOWED, Phase

_BLOCKS_LIMIT = 16
"""RAMBlocks of one VM: a PC needs two (below and above 4 GiB)."""
_VCPUS_LIMIT = 255
"""vCPUs of one VM: APIC ids are a byte in CPUID leaf 1."""
_RAM_LIMIT = 512 << 30
"""Bytes of RAM: page states take two bits a page, which must fit the machine state of a migration (64 MiB)."""

_Answer = tuple[wire.Reply, Sequence[int]]


class Server:
    """Serves one VMM until it disconnects; there is one VM at most."""

    def __init__(self, sock: socket.socket, processor: SecureProcessor, engine: Chosen) -> None:
        self._channel: Channel[wire.Request, wire.Reply] = Channel(sock, wire.Request)
        self._processor = processor
        self._engine = engine
        self._vm: VirtualMachine | None = None
        self._bitmap: BitmapArea | None = None
        self._transfer: TransferService | None = None
        self._debug: DebugService | None = None
        # Now, while the files are what was just loaded: an upgrade may replace them under a running platform.
        self._digest = handler_digest()
        self._handle = 0
        self._handed_over: list[socket.socket | LinkParts] = []  # what is the VMM's once it has the reply
        self._handlers: dict[type[wire.Message], Callable[[Any], _Answer]] = {
            wire.CreateVm: self._create_vm,
            wire.CreateVcpu: self._create_vcpu,
            wire.GetRegisters: self._get_registers,
            wire.SetRegisters: self._set_registers,
            wire.Kick: self._kick,
            wire.ConnectInterrupt: self._connect_interrupt,
            wire.GetChips: self._get_chips,
            wire.SetChips: self._set_chips,
            wire.GetSharedDirtyLog: self._shared_dirty,
            wire.StartWriteMeter: self._start_meter,
            wire.ReadWriteMeter: self._read_meter,
            wire.StopWriteMeter: self._stop_meter,
            wire.CountPopulated: self._count_populated,
            wire.JudgeGuest: self._judge,
            wire.GetPageStates: self._page_states,
            wire.ReadHostView: self._read_host_view,
            wire.WriteHostView: self._write_host_view,
            wire.GetPlatformInfo: self._info,
            wire.PdhCertExport: self._pdh_cert_export,
            wire.LaunchStart: self._launch_start,
            wire.LaunchUpdateData: self._launch_update_data,
            wire.LaunchUpdateVmsa: self._launch_update_vmsa,
            wire.LaunchMeasure: self._launch_measure,
            wire.LaunchSecret: self._launch_secret,
            wire.LaunchFinish: self._launch_finish,
            wire.GetGuestStatus: self._guest_status,
            wire.GetAttestation: self._attestation,
            wire.OpenHandler: self._open_handler,
            wire.OpenPackets: self._open_packets,
            wire.OpenDebugWindow: self._open_debug_window,
            wire.ReceiveStart: self._receive_start,
        }
        self._platform = PlatformService(processor)

    def serve(self) -> None:
        """Answer requests until the other end closes the connection."""
        try:
            while True:
                self._serve_one()
        except LostError:
            # Between requests or in the middle of one: the VMM is gone, and with it the guest.
            self._end_guest()

    def _serve_one(self) -> None:
        try:
            request = self._channel.receive_alone()
        except StreamError as error:
            self._channel.send(to_failed(error))
            return
        reply, passed = self._answer(request)
        try:
            self._channel.send(reply, passed)
        finally:
            for theirs in self._handed_over:
                theirs.close()
            self._handed_over.clear()

    def _answer(self, request: wire.Request) -> _Answer:
        phase = self._phase()
        try:
            if phase not in ALLOWED[type(request)]:
                raise RefusedError(f"{type(request).__name__} is not possible while the VM is {phase.value}")
            if (of_platform := self._platform.handlers.get(type(request))) is not None:
                return of_platform(request), ()
            if self._transfer is not None and (moves := self._transfer.handlers.get(type(request))) is not None:
                return moves(request), ()
            if self._debug is not None and (looks := self._debug.handlers.get(type(request))) is not None:
                return looks(request), ()
            return self._handlers[type(request)](request)
        except SealiftError as error:
            return to_failed(error), ()
        except OSError as error:
            # The machine has no more of something, or its KVM refuses: no bug, and the VMM may have provoked it.
            refused = RefusedError(f"this machine refuses {type(request).__name__} ({error.strerror})")
            return to_failed(refused), ()

    def _phase(self) -> Phase:
        return Phase.EMPTY if self._vm is None else self._vm.phase()

    def _launch_phase(self) -> Phase:
        match self._state():
            case GuestState.UNINIT:
                return Phase.CREATED
            case GuestState.LUPDATE | GuestState.LSECRET:
                return Phase.LAUNCHING
            case GuestState.RUNNING:
                return Phase.RUNNING
            case GuestState.SUPDATE:
                return Phase.SENDING
            case GuestState.RUPDATE:
                return Phase.RECEIVING
            case GuestState.SENT:
                return Phase.GONE

    def _state(self) -> GuestState:
        return self._processor.guest_status(self._handle).state if self._handle else GuestState.UNINIT

    @property
    def _machine(self) -> VirtualMachine:
        if self._vm is None:
            raise InternalError("the request table let a request through that needs a VM before there is one")
        return self._vm

    # --- memory and vCPUs ----------------------------------------------------------------------------------------

    def _create_vm(self, request: wire.CreateVm) -> _Answer:
        if not 1 <= len(request.blocks) <= _BLOCKS_LIMIT or not 1 <= request.vcpus <= _VCPUS_LIMIT:
            raise RefusedError(f"a VM has 1 to {_BLOCKS_LIMIT} RAMBlocks and 1 to {_VCPUS_LIMIT} vCPUs")
        layout = RamLayout(tuple(RamBlock(block.name, Gpa(block.gpa), block.size) for block in request.blocks))
        if layout.size > _RAM_LIMIT:
            raise RefusedError(f"guest RAM of {layout.size >> 30} GiB is over the limit of {_RAM_LIMIT >> 30} GiB")
        self._engine = self._engine.for_guest(es=request.es, plain=request.plain)
        first_encrypted = 1 << (request.cbit or self._engine.factory.cbit)
        if layout.end > first_encrypted:
            raise RefusedError(f"guest RAM must end below the C-bit at {first_encrypted:#x}")
        if request.cpu and request.limit is not None:
            raise RefusedError("a guest that brings its CPU can be given no other")
        shape = VmShape(
            request.vcpus,
            request.irqchip,
            request.cbit or None,
            request.cpu,
            request.es,
            request.plain,
            request.limit,
        )
        vm = VirtualMachine(layout, shape, self._engine.factory, self._launch_phase, self._digest)
        area = self._bitmap = BitmapArea(layout.pages)
        self._transfer = TransferService(self._processor, vm, area, lambda: self._handle)
        self._debug = DebugService(self._processor, vm, lambda: self._handle)
        self._vm = vm
        if request.prealloc:
            vm.memory.private.touch()
        created = wire.VmCreated(area.plane.size, vm.engine.cbit, vm.engine.cpu)
        return created, (vm.memory.shared.fd, area.plane.fd)

    def _create_vcpu(self, request: wire.CreateVcpu) -> _Answer:
        link, theirs = exit_link()
        try:
            self._machine.create_vcpu(request.index, link)
        except SealiftError:
            link.close()
            theirs.close()
            raise
        self._handed_over.append(theirs)
        return wire.Done(), (theirs.sock.fileno(), theirs.area)

    def _get_registers(self, request: wire.GetRegisters) -> _Answer:
        return wire.VcpuRegisters(self._machine.require_stopped(request.index).vcpu.registers()), ()

    def _set_registers(self, request: wire.SetRegisters) -> _Answer:
        self._machine.require_stopped(request.index).vcpu.set_registers(request.registers)
        return wire.Done(), ()

    def _kick(self, request: wire.Kick) -> _Answer:
        self._machine.vcpu(request.index).vcpu.kick()
        return wire.Done(), ()

    def _connect_interrupt(self, request: wire.ConnectInterrupt) -> _Answer:
        return wire.Done(), (self._machine.engine.interrupt(request.gsi),)

    def _get_chips(self, _: wire.GetChips) -> _Answer:
        return wire.Chips(self._machine.engine.save_chips()), ()

    def _set_chips(self, request: wire.SetChips) -> _Answer:
        self._machine.engine.restore_chips(request.state)
        return wire.Done(), ()

    def _shared_dirty(self, _: wire.GetSharedDirtyLog) -> _Answer:
        return self._area.leave(self._machine.memory.take_shared_dirty()), ()

    def _start_meter(self, _: wire.StartWriteMeter) -> _Answer:
        self._machine.memory.start_meter()
        return wire.Done(), ()

    def _read_meter(self, _: wire.ReadWriteMeter) -> _Answer:
        return wire.WritesMetered(*self._machine.memory.read_meter()), ()

    def _stop_meter(self, _: wire.StopWriteMeter) -> _Answer:
        self._machine.memory.stop_meter()
        return wire.Done(), ()

    def _count_populated(self, _: wire.CountPopulated) -> _Answer:
        return wire.Count(self._machine.memory.count_private()), ()

    def _judge(self, request: wire.JudgeGuest) -> _Answer:
        engine = self._engine.for_guest(es=request.es, plain=request.plain)
        obstacles = []
        if request.ram > _RAM_LIMIT or request.vcpus > _VCPUS_LIMIT:
            obstacles.append(
                Obstacle(Code.SHAPE, f"guests here have at most {_RAM_LIMIT >> 30} GiB of RAM and {_VCPUS_LIMIT} vCPUs")
            )
        if request.engine != engine.factory.name:
            reason = f"the guest runs on the engine {request.engine}, and would on {engine.factory.name} here"
            return wire.Judged((*obstacles, Obstacle(Code.ENGINE, f"{reason} ({engine.reason})"))), ()
        shape = VmShape(request.vcpus, request.irqchip, request.cbit or None, request.cpu, request.es, request.plain)
        return wire.Judged((*obstacles, *engine.factory.judge(shape))), ()

    def _page_states(self, _: wire.GetPageStates) -> _Answer:
        return self._area.leave(self._machine.memory.shared_pages()), ()

    @property
    def _area(self) -> BitmapArea:
        if self._bitmap is None:
            raise InternalError("a VM exists without its bitmap area")
        return self._bitmap

    def _read_host_view(self, request: wire.ReadHostView) -> _Answer:
        self._machine.require_pages(request.first, request.count)
        self._machine.memory.read_host_view(request.first, request.count)
        return wire.Done(), ()

    def _write_host_view(self, request: wire.WriteHostView) -> _Answer:
        self._machine.require_pages(request.first, request.count)
        self._machine.memory.write_host_view(request.first, request.count)
        return wire.Done(), ()

    # --- secure processor ----------------------------------------------------------------------------------------

    def _info(self, _: wire.GetPlatformInfo) -> _Answer:
        version = self._processor.version
        info = wire.PlatformInfo(
            api_major=version.api_major,
            api_minor=version.api_minor,
            build_id=version.build_id,
            cbit=self._engine.factory.cbit,
            reduced_phys_bits=1,
            engine=self._engine.factory.name,
            engine_reason=self._engine.reason,
            handler_digest=self._digest,
            ca_chain=self._processor.ca_chain,
        )
        return info, ()

    def _pdh_cert_export(self, _: wire.PdhCertExport) -> _Answer:
        # Firmware exports an unsigned CEK; what travels to owners has the manufacturer's signature filled in.
        certificates = self._processor.endorsed_certificates()
        return wire.PdhCertificates(certificates.pdh, certificates.cert_chain), ()

    def _launch_start(self, request: wire.LaunchStart) -> _Answer:
        self._machine.require_kind(Policy(request.policy))
        self._handle = self._processor.launch_start(
            self._machine.memory, request.policy, request.dh_cert, request.session
        )
        self._activate()
        return wire.Done(), ()

    def _launch_update_data(self, request: wire.LaunchUpdateData) -> _Answer:
        self._processor.launch_update_data(self._handle, request.gpa, request.length)
        return wire.Done(), ()

    def _launch_update_vmsa(self, request: wire.LaunchUpdateVmsa) -> _Answer:
        self._machine.require_stopped(request.index)
        self._processor.launch_update_vmsa(self._handle, request.index, request.vmsa)
        return wire.Done(), ()

    def _launch_measure(self, _: wire.LaunchMeasure) -> _Answer:
        return wire.Measurement(self._processor.launch_measure(self._handle)), ()

    def _launch_secret(self, request: wire.LaunchSecret) -> _Answer:
        header, payload = request.header, request.payload
        self._processor.launch_secret(self._handle, header, payload, request.gpa, len(payload))
        self._machine.secret_injected(request.gpa, len(payload))
        return wire.Done(), ()

    def _launch_finish(self, _: wire.LaunchFinish) -> _Answer:
        with self._machine.gate.barring():  # nobody looks at the owner's secret before the handler has taken its key
            self._processor.launch_finish(self._handle)
            facts = self._processor.facts(self._handle)
            if facts.measure is None:
                raise InternalError("a launch finished without having been measured")
            self._machine.start_handler(facts.measure, facts.policy)
        return wire.Done(), ()

    def _activate(self) -> None:
        """Give the guest an ASID: which one is the host's choice, and there is no other guest."""
        policy = self._processor.guest_status(self._handle).policy
        self._processor.activate(self._handle, asids.fitting(policy).start)

    def _end_guest(self) -> None:
        """Leave the secure processor as a host does that goes on after its guest."""
        if not self._handle:
            return
        if self._processor.guest_status(self._handle).asid:
            self._processor.deactivate(self._handle)
        self._processor.wbinvd()
        self._processor.df_flush()
        self._processor.decommission(self._handle)

    def _guest_status(self, _: wire.GetGuestStatus) -> _Answer:
        if not self._handle:
            return wire.GuestStatus(self._phase(), GuestState.UNINIT, 0, 0, aware=False, ready=False), ()
        status, says = self._processor.guest_status(self._handle), self._machine.engine.says
        answer = wire.GuestStatus(
            phase=self._phase(),
            state=status.state,
            policy=status.policy,
            handle=self._handle,
            aware=says.aware,
            ready=says.ready,
            blocked=self._machine.blocked(),
        )
        return answer, ()

    def _attestation(self, request: wire.GetAttestation) -> _Answer:
        return wire.AttestationReport(self._processor.attestation(self._handle, request.mnonce)), ()

    # --- migration between secure processors -----------------------------------------------------------------------

    @property
    def _mover(self) -> TransferService:
        if self._transfer is None:
            raise InternalError("a VM exists without the service that moves it")
        return self._transfer

    def _open_packets(self, _: wire.OpenPackets) -> _Answer:
        desk = self._mover.packets
        return desk.shape, desk.descriptors

    def _receive_start(self, request: wire.ReceiveStart) -> _Answer:
        self._machine.require_kind(Policy(request.policy))
        self._handle = self._processor.receive_start(self._machine.memory, request.policy, request.pdh, request.session)
        self._activate()
        self._mover.packets.begin(request.session)
        return wire.Done(), ()

    # --- debugging -----------------------------------------------------------------------------------------------

    def _open_debug_window(self, _: wire.OpenDebugWindow) -> _Answer:
        if self._debug is None:
            raise InternalError("a VM exists without the service that looks into it")
        window = self._debug.window
        return wire.DebugWindow(window.size), (window.fd,)

    # --- handler -------------------------------------------------------------------------------------------------

    def _open_handler(self, _: wire.OpenHandler) -> _Answer:
        ours, theirs = socket_pair()
        try:
            outgoing, incoming, mailbox = self._machine.open_handler(ours)
        except SealiftError:
            ours.close()
            theirs.close()
            raise
        opened = wire.HandlerOpened(SLOTS, SLOT_SIZE, mailbox.gpa, mailbox.size)
        self._handed_over.append(theirs)
        return opened, (theirs.fileno(), outgoing.plane.fd, incoming.plane.fd, self._machine.memory.presence.bell)
