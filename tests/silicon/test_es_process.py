"""SEV-ES over the real platform process: what is measured, what is refused, and what a VMM gets to see."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import pytest
import sevsnpmeasure.guest
from sevsnpmeasure.sev_mode import SevMode

import judges
from sealift.address import PAGE_SIZE, Gpa, RamBlock, RamLayout
from sealift.errors import FirmwareError, RefusedError, UserError
from sealift.launch.entry import EntryState
from sealift.launch.flash import FlashImage
from sealift.sev import measurement
from sealift.sev.ghcb import GHCB_MSR, ExitCode, Ghcb
from sealift.sev.measurement import FirmwareVersion
from sealift.sev.policy import DEFAULT_POLICY, Policy
from sealift.sev.session import TransportKeys
from sealift.sev.status import Status
from sealift.sev.vmsa import CPU_SIGNATURES, RESET_EIP, FpuProfile, reset_vmsa
from sealift.silicon.engines.choice import Chosen
from sealift.silicon.engines.interface import VmShape
from sealift.silicon.engines.kvm.engine import KvmFactory
from sealift.silicon.engines.unicorn.engine import UnicornFactory
from sealift.silicon.memory.guest_memory import GuestMemory
from sealift.wire import platform as wire

from . import board
from .code import HLT, UD2, mov
from .es_board import VMGEXIT, write_msr
from .hosts import SMALL, Host, Hosts, _table
from .windows import KEY, LAYOUT

OVMF = Path("/usr/share/OVMF/OVMF_CODE.fd")
ES = DEFAULT_POLICY | Policy.ES
PLANTED = 0x5EA1_1F7C_0DE0_F00D
MASK = 0x0123_4567_89AB_CDEF
GHCB = board.DATA
VMSA = reset_vmsa(RESET_EIP, CPU_SIGNATURES["EPYC"], FpuProfile.INIT2)


def created(hosts: Hosts, layout: RamLayout = SMALL, vcpus: int = 1) -> Host:
    """A host with a VM for an SEV-ES guest."""
    host = hosts.start()
    host.memory = host.platform.create_vm(layout, vcpus, es=True)
    host.vcpu = host.platform.create_vcpu(0)
    return host


def launching(hosts: Hosts) -> Host:
    """The same, whose launch has started."""
    host = created(hosts)
    host.platform.do(wire.LaunchStart(int(ES), b"", b""))
    return host


# --- what is measured ---------------------------------------------------------------------------------------------


def test_others_predict_the_digest_of_a_launch_with_vmsas(hosts: Hosts) -> None:
    """Test LAUNCH_MEASURE of Debian's firmware and two vCPUs against sev-snp-measure."""
    firmware_file = judges.file(OVMF, "ovmf")
    signature = CPU_SIGNATURES["EPYC-Milan"]
    firmware = FlashImage.decode(firmware_file.read_bytes())
    host = created(hosts, RamLayout((RamBlock("ram", Gpa(0), 8 << 20),)), vcpus=2)
    host.platform.create_vcpu(1).close()
    host.platform.do(wire.LaunchStart(int(ES), b"", b""))
    host.load(0, firmware.data)
    for vcpu, eip in enumerate((RESET_EIP, firmware.reset_eip())):
        host.platform.do(wire.LaunchUpdateVmsa(vcpu, reset_vmsa(eip, signature, FpuProfile.INIT2)))
    measure = host.platform.request(wire.LaunchMeasure(), wire.Measurement).measure
    info = host.platform.info()
    version = FirmwareVersion(info.api_major, info.api_minor, info.build_id)
    digest = sevsnpmeasure.guest.calc_launch_digest(SevMode.SEV_ES, 2, signature, str(OVMF), "", "", "", 0)
    assert measurement.matches(measure, TransportKeys.absent().tik, version, ES, digest)


def test_a_vmsa_is_measured_as_it_was_supplied_and_behind_the_data_before_it(hosts: Hosts) -> None:
    host = launching(hosts)
    host.load(0, b"\x01" * PAGE_SIZE)
    host.platform.do(wire.LaunchUpdateVmsa(0, VMSA))
    host.load(PAGE_SIZE, b"\x02" * PAGE_SIZE)
    measure = host.platform.request(wire.LaunchMeasure(), wire.Measurement).measure
    digest = hashlib.sha256(b"\x01" * PAGE_SIZE + VMSA + b"\x02" * PAGE_SIZE).digest()
    info = host.platform.info()
    version = FirmwareVersion(info.api_major, info.api_minor, info.build_id)
    assert measurement.matches(measure, TransportKeys.absent().tik, version, ES, digest)


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.attack("registers", "gets or sets registers of an SEV-ES guest", gains="nothing")
def test_registers_are_refused_from_the_creation_of_the_vm_on(hosts: Hosts) -> None:
    host = created(hosts)
    registers = wire.Registers((0,) * 16, 0, 2, 0, 0, 0, 0, 0)

    def both_refused() -> None:
        with pytest.raises(RefusedError, match="come from LAUNCH_UPDATE_VMSA"):
            host.platform.do(wire.SetRegisters(0, registers))
        with pytest.raises(RefusedError, match="nobody outside the guest can read them"):
            host.platform.registers(0)

    both_refused()
    host.platform.do(wire.LaunchStart(int(ES), b"", b""))
    both_refused()
    host.platform.do(wire.LaunchUpdateVmsa(0, VMSA))
    both_refused()
    host.finish_launch()
    both_refused()


@pytest.mark.parametrize(("es", "policy"), [(True, DEFAULT_POLICY), (False, ES)])
def test_a_vm_takes_only_guests_of_the_kind_it_was_created_for(hosts: Hosts, policy: Policy, *, es: bool) -> None:
    host = hosts.start()
    host.memory = host.platform.create_vm(SMALL, 1, es=es)
    with pytest.raises(RefusedError, match="was created for one with"):
        host.platform.do(wire.LaunchStart(int(policy), b"", b""))


def test_vmsas_are_refused_where_there_can_be_none(hosts: Hosts) -> None:
    host = launching(hosts)
    with pytest.raises(RefusedError, match="no vCPU 1"):
        host.platform.do(wire.LaunchUpdateVmsa(1, VMSA))
    with pytest.raises(FirmwareError) as caught:
        host.platform.do(wire.LaunchUpdateVmsa(0, VMSA[:-1]))
    assert caught.value.status == Status.INVALID_LENGTH
    plain = hosts.start()
    plain.create()
    plain.start_launch()
    with pytest.raises(FirmwareError) as caught:
        plain.platform.do(wire.LaunchUpdateVmsa(0, VMSA))
    assert caught.value.status == Status.UNSUPPORTED


def test_a_machine_with_interrupt_controllers_is_refused(hosts: Hosts) -> None:
    """The VMM would have them: no engine here that hides registers has any."""
    host = hosts.start()
    with pytest.raises(UserError, match=r"no interrupt controllers|runs no SEV-ES guests"):
        host.platform.create_vm(SMALL, 1, irqchip=True, es=True)


def test_an_engine_that_sees_registers_is_taken_for_no_such_guest() -> None:
    kvm = KvmFactory.__new__(KvmFactory)  # without a KVM
    left_to_us, asked_for = Chosen(kvm, "KVM passed its self-test"), Chosen(kvm, "it was asked for", asked_for=True)
    assert left_to_us.for_guest(es=False) is left_to_us
    other = left_to_us.for_guest(es=True)
    assert other.factory.name == "unicorn"
    assert "SEV-ES" in other.reason
    assert asked_for.for_guest(es=True) is asked_for
    with pytest.raises(UserError, match="kvm runs no SEV-ES guests"):
        kvm.make(GuestMemory(LAYOUT, KEY), VmShape(1, es=True))
    portable = Chosen(UnicornFactory(), "it was asked for", asked_for=True)
    assert portable.for_guest(es=True) is portable


# --- what a VMM sees ----------------------------------------------------------------------------------------------


def launched(hosts: Hosts, code: bytes) -> Host:
    """An SEV-ES guest of a few instructions."""
    host = launching(hosts)
    c = 1 << host.platform.info().cbit
    rights = c | board.PRESENT | board.WRITABLE
    tables = [_table(below | rights) for below in (board.PDPT, board.PD, board.PT)]
    leaves = b"".join((address | rights).to_bytes(8, "little") for address in range(0, SMALL.size, PAGE_SIZE))
    host.load(board.PML4, b"".join(tables) + leaves)
    host.load(board.CODE, code.ljust(PAGE_SIZE, b"\0"))
    entry = EntryState(rip=board.CODE, cr3=board.PML4 | c, efer=0xD00)
    host.platform.do(wire.LaunchUpdateVmsa(0, entry.vmsa()))
    host.finish_launch()
    return host


def everything_seen(host: Host, exits: list[wire.Exit]) -> bytes:
    """The shared plane, its view of private pages, and every reply."""
    assert host.memory is not None
    host.platform.do(wire.ReadHostView(0, SMALL.pages))
    shown = bytes(host.memory.mapping.view)
    replies = (host.platform.status(), host.platform.info())
    return shown + b"".join(msgspec.msgpack.encode(reply) for reply in (*exits, *replies))


def needles() -> tuple[bytes, ...]:
    """What the guest computes, as memory, messages and text would show it."""
    little, big = (PLANTED.to_bytes(8, order) for order in ("little", "big"))
    return little, big, f"{PLANTED:x}".encode(), str(PLANTED).encode()


COMPUTE = mov("rbx", PLANTED ^ MASK) + mov("rcx", MASK) + b"\x48\x31\xcb"  # xor rbx, rcx: no instruction holds it
SPREAD = b"".join(b"\x49\x89" + bytes((0xD8 | number,)) for number in range(8))  # mov r8..r15, rbx


@pytest.mark.attack("registers", "searches everything it sees for an SEV-ES guest's registers", gains="nothing")
def test_no_register_ever_reaches_the_vmm(hosts: Hosts) -> None:
    """The guest holds a number that it computed in nine registers, through every kind of exit and its own end."""
    share = write_msr(GHCB_MSR, 2 << 52 | GHCB | 0x014) + VMGEXIT
    ask = write_msr(GHCB_MSR, GHCB) + VMGEXIT
    host = launched(hosts, COMPUTE + SPREAD + share + ask + HLT + UD2)
    assert host.memory is not None
    exits = [host.run()]
    assert exits == [wire.PageStateChange(GHCB, 1, encrypted=False)]
    page = Ghcb(protocol_version=2)
    fields = {"sw_exitcode": ExitCode.IOIO, "sw_exitinfo1": 0x3F8_0010, "sw_exitinfo2": 0, "rax": 0x41}
    for name, value in fields.items():
        page.put(name, value)
    host.memory.place(GHCB, bytes(page))
    exits += [host.run(), host.run()]
    assert exits[1:] == [wire.PortOut(0x3F8, 1, 0x41), wire.Halt()]
    with pytest.raises(RefusedError):
        host.platform.registers(0)
    exits.append(host.run())
    assert isinstance(exits[-1], wire.Fault)
    assert (exits[-1].rip, exits[-1].address, exits[-1].error_code) == (0, 0, 0)
    seen = everything_seen(host, exits)
    assert not [needle for needle in needles() if needle in seen]


def test_the_same_search_finds_a_register_of_a_guest_without_es(hosts: Hosts) -> None:
    host = hosts.start()
    host.launch_code(COMPUTE + HLT)
    assert host.run() == wire.Halt()
    seen = msgspec.msgpack.encode(wire.VcpuRegisters(host.platform.registers(0)))
    assert needles()[1] in seen
