"""The VMSA page against the offsets of the facts, and against what two other projects build."""

from __future__ import annotations

import hashlib
import subprocess

import pytest
from sevsnpmeasure.vcpu_types import CPU_SIGS
from sevsnpmeasure.vmsa import VMSA

from sealift.sev.vmsa import CPU_SIGNATURES, RESET_EIP, FpuProfile, Vmsa, reset_vmsa, signature

from .test_peers import validator

RESET_BLOCK_EIP = 0x0080_B004

_OFFSETS = """
es:0x00 cs:0x10 ss:0x20 ds:0x30 fs:0x40 gs:0x50 gdtr:0x60 ldtr:0x70 idtr:0x80 tr:0x90 cpl:0xCB
efer:0xD0 xss:0x140 cr4:0x148 cr3:0x150 cr0:0x158 dr7:0x160 dr6:0x168 rflags:0x170 rip:0x178
rsp:0x1D8 rax:0x1F8 star:0x200 lstar:0x208 cstar:0x210 sfmask:0x218 kernel_gs_base:0x220
sysenter_cs:0x228 sysenter_esp:0x230 sysenter_eip:0x238 cr2:0x240 g_pat:0x268 pkru:0x2E8
tsc_aux:0x2EC rcx:0x308 rdx:0x310 rbx:0x318 rbp:0x328 rsi:0x330 rdi:0x338 r8:0x340 r15:0x378
sev_features:0x3B0 xcr0:0x3E8 mxcsr:0x408 x87_fcw:0x410 fpreg_x87:0x420 fpreg_xmm:0x470
fpreg_ymm:0x570
"""
OFFSETS = [(field, int(offset, 16)) for field, offset in (item.split(":") for item in _OFFSETS.split())]


@pytest.mark.parametrize(("field", "offset"), OFFSETS)
def test_fields_lie_where_the_processor_has_them(field: str, offset: int) -> None:
    assert getattr(Vmsa, field).offset == offset


@pytest.mark.parametrize("eip", [RESET_EIP, RESET_BLOCK_EIP])
@pytest.mark.parametrize("model", CPU_SIGNATURES)
def test_a_reset_page_is_the_one_sev_snp_measure_builds(eip: int, model: str) -> None:
    ours = reset_vmsa(eip, CPU_SIGNATURES[model], FpuProfile.INIT2)
    assert ours == bytes(VMSA.build_save_area(eip, 0, CPU_SIGS[model]))


def test_every_cpu_model_of_sev_snp_measure_is_known() -> None:
    assert dict(CPU_SIGNATURES) == CPU_SIGS


@pytest.mark.parametrize(
    ("eip", "sha256"),
    [
        (RESET_EIP, "30a76bd1"),
        (RESET_BLOCK_EIP, "3d1cd8f9"),
    ],
)
def test_a_legacy_reset_page_is_libvirts(eip: int, sha256: str) -> None:
    """Test against hashes that libvirt 9.0's validator printed for family 23, model 1, stepping 2."""
    page = reset_vmsa(eip, signature(23, 1, 2), FpuProfile.LEGACY)
    assert hashlib.sha256(page).hexdigest().startswith(sha256)


_LIBVIRT_BUILDS = """
import importlib.machinery, importlib.util, sys
loader = importlib.machinery.SourceFileLoader("validator", sys.argv[1])
module = importlib.util.module_from_spec(importlib.util.spec_from_loader("validator", loader))
loader.exec_module(module)
vmsa = module.VMSA()
vmsa.amd64_cpu_init()
vmsa.kvm_cpu_init()
vmsa.qemu_cpu_init()
vmsa.cpu_sku(*map(int, sys.argv[2:5]))
vmsa.reset_addr(int(sys.argv[5]))
sys.stdout.buffer.write(vmsa.pack())
"""


def test_libvirts_validator_builds_the_same_legacy_page() -> None:
    interpreter, tool = validator()
    for family, model, stepping in ((23, 1, 2), (25, 17, 0), (6, 42, 1)):
        numbers = [str(number) for number in (family, model, stepping, RESET_BLOCK_EIP)]
        command = [interpreter, "-B", "-c", _LIBVIRT_BUILDS, tool, *numbers]
        done = subprocess.run(command, capture_output=True, check=True)
        ours = reset_vmsa(RESET_BLOCK_EIP, signature(family, model, stepping), FpuProfile.LEGACY)
        assert ours == done.stdout


def test_numbers_without_an_encoding_are_refused() -> None:
    for numbers in ((-1, 0, 0), (271, 0, 0), (23, 256, 0), (23, 1, 16)):
        with pytest.raises(ValueError, match="there is no CPU"):
            signature(*numbers)
    with pytest.raises(ValueError, match="32-bit"):
        reset_vmsa(1 << 32, 0, FpuProfile.LEGACY)
