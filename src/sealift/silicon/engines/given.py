"""Which engine runs guests here, and which CPU it can give them: all that can be said without loading an engine.

Engines load numpy and an emulator, which takes longer than the answer.
"""

from __future__ import annotations

from typing import Final

from sealift.cpu.description import CpuDescription
from sealift.errors import InternalError, UserError, sentence
from sealift.silicon.engines import cpuid
from sealift.silicon.engines.kvm.cpu import host_cpu
from sealift.silicon.engines.kvm.kernel import Kvm
from sealift.silicon.engines.kvm.usable import check

AUTO: Final = "auto"
KVM: Final = "kvm"
UNICORN: Final = "unicorn"
NAMES: Final = (AUTO, KVM, UNICORN)

PORTABLE_CBIT: Final = 47
"""Position of the portable engine's C-bit, as on EPYC 7001 and 7002; addresses above it do not exist for guests."""


def decide(name: str) -> tuple[str, str]:
    """The engine of that name, and a sentence why; with ``auto``, KVM if it passes its self-test, or the portable one.

    Raises:
        UserError: KVM was asked for and cannot be used.
    """
    match name:
        case "unicorn":
            return UNICORN, "it was asked for"
        case "kvm":
            check()
            return KVM, "it was asked for"
        case "auto":
            try:
                check()
            except UserError as error:
                return UNICORN, sentence(error)
            return KVM, "KVM passed its self-test"
        case _:
            raise InternalError(f"there is no engine {name!r}; there are {', '.join(NAMES)}")


def cpu_of(engine: str) -> CpuDescription:
    """All that guests without wishes see of this host's CPU on one of the two engines.

    Raises:
        UserError: there is no KVM that could be used.
    """
    return kvm_cpu(Kvm()) if engine == KVM else portable_cpu()


def kvm_cpu(kvm: Kvm) -> CpuDescription:
    """What KVM offers, less what would tie the guest to this host."""
    return host_cpu(kvm.cpuid, irqchip=True).described(KVM)


def portable_cpu() -> CpuDescription:
    """The CPU that the portable engine emulates."""
    return cpuid.described(cpuid.leaves(vcpu=0, vcpus=1, cbit=PORTABLE_CBIT), UNICORN)
