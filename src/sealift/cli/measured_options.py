"""The options that say what is measured: a guest as `sealift run` launches it, or a firmware image as QEMU does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from click.core import ParameterSource

from sealift.cli.image_options import image_options
from sealift.cli.options import F, file_option
from sealift.errors import UserError

if TYPE_CHECKING:
    from sealift.launch.image import GuestRecipe
    from sealift.owner.guestimage import GuestImage, KernelFiles
    from sealift.owner.vcpus import EsVcpus, VmsaFiles
    from sealift.sev.policy import Policy

_PROFILES: Final = ("init2", "legacy")

_OPTIONS: Final = (
    file_option("--firmware", "Measure this firmware image (OVMF), as QEMU launches it, in place of Sealift's own."),
    click.option(
        "--kernel-hashes/--no-kernel-hashes",
        default=True,
        show_default=True,
        help="With --firmware and --kernel: whether QEMU has their hashes measured (its kernel-hashes=on).",
    ),
    click.option("--vcpu-type", help="SEV-ES with --firmware: QEMU's CPU model (EPYC-v4 if nothing is said)."),
    click.option("--vcpu-signature", help="SEV-ES with --firmware: CPUID leaf 1's EAX, in place of --vcpu-type."),
    click.option(
        "--fpu",
        type=click.Choice(_PROFILES),
        default=_PROFILES[0],
        show_default=True,
        help="SEV-ES with --firmware: what the hypervisor leaves in FPU registers; "
        "init2 is KVM_SEV_INIT2 (Linux 6.10 and later), legacy KVM_SEV_ES_INIT (before, and older QEMU on any).",
    ),
    click.option(
        "--sev-features",
        default="0",
        show_default=True,
        help="SEV-ES with --firmware: SEV_FEATURES; 0x20 where KVM swaps debug registers.",
    ),
    file_option("--vmsa-cpu0", "SEV-ES with --firmware: the first vCPU's VMSA, in place of a computed one."),
    file_option("--vmsa-cpu1", "SEV-ES with --firmware: every other vCPU's."),
)
_OWN_IMAGE: Final = ("memory", "payload")
"""Options that mean nothing with ``--firmware``."""
_COMPUTED: Final = ("vcpu_type", "vcpu_signature", "fpu", "sev_features")
"""Options that say what is in a VMSA."""
_ES_ONLY: Final = ("vcpus", *_COMPUTED, "vmsa_cpu0", "vmsa_cpu1")
"""Options that mean nothing without SEV-ES, where a firmware image is measured."""
_FIRMWARE_IMAGE: Final = (*_COMPUTED, "kernel_hashes", "vmsa_cpu0", "vmsa_cpu1")
"""Options that mean nothing without ``--firmware``."""


def measured_options(function: F) -> F:
    """`image_options` and those of a firmware image."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return image_options(function)


@dataclass(frozen=True, slots=True)
class MeasuredGuest:
    """What the options describe.

    Attributes:
        image: its buffers are measured.
        policy: the guest's.
        recipe: of Sealift's own image; None with a firmware image.
        vcpus: whose VMSAs are measured with a firmware image; None without SEV-ES.
    """

    image: GuestImage
    policy: Policy
    recipe: GuestRecipe | None = None
    vcpus: EsVcpus | None = None


def measured_guest(settings: dict[str, Any]) -> MeasuredGuest:
    """The guest that the options of the current command describe.

    Raises:
        UsageError: options that mean nothing together.
        UserError: it cannot be measured, or a file cannot be read.
    """
    from sealift.sev.policy import parse_policy

    policy = parse_policy(settings["policy"])
    if settings["firmware"] is None:
        _refuse(_FIRMWARE_IMAGE, "has no use without --firmware")
        return _own_image(settings, policy)
    _refuse(_OWN_IMAGE, "has no use with --firmware")
    return _firmware_image(settings, policy)


def _own_image(settings: dict[str, Any], policy: Policy) -> MeasuredGuest:
    from sealift.cli.recipes import make_recipe
    from sealift.owner.guestimage import DirectBoot

    names = ("memory", "vcpus", "kernel", "payload", "append", "initrd")
    recipe = make_recipe(*(settings[name] for name in names)).under(policy)
    return MeasuredGuest(DirectBoot(recipe), policy, recipe)


def _firmware_image(settings: dict[str, Any], policy: Policy) -> MeasuredGuest:
    from sealift.launch.flash import SIZE_LIMIT, FlashImage
    from sealift.owner.files import parsed
    from sealift.owner.guestimage import FirmwareBoot

    firmware = parsed("firmware", settings["firmware"], SIZE_LIMIT, FlashImage.decode)
    kernel = _kernel_files(settings)
    hashes = kernel.hashes() if kernel is not None and settings["kernel_hashes"] else None
    vcpus = _es_vcpus(settings) if policy.ES in policy else None
    if vcpus is None:
        _refuse(_ES_ONLY, "is measured of an SEV-ES guest alone; see --policy")
    return MeasuredGuest(FirmwareBoot(firmware, kernel, hashes, vcpus), policy, vcpus=vcpus)


def _kernel_files(settings: dict[str, Any]) -> KernelFiles | None:
    from sealift.cli.recipes import file_content
    from sealift.owner.guestimage import KernelFiles

    if not _said("kernel"):
        _refuse(("initrd", "append", "kernel_hashes"), "goes with --kernel")
        return None
    initrd = b"" if settings["initrd"] is None else file_content("initrd", settings["initrd"])
    return KernelFiles(file_content("kernel", Path(settings["kernel"])), initrd, settings["append"])


def _es_vcpus(settings: dict[str, Any]) -> EsVcpus:
    from sealift.owner.vcpus import COUNT_LIMIT, EsVcpus
    from sealift.sev.vmsa import FpuProfile

    count = settings["vcpus"]
    if count > COUNT_LIMIT:
        raise UserError(f"an SEV-ES guest has at most {COUNT_LIMIT} vCPUs, not {count}")
    features = _number("SEV_FEATURES", settings["sev_features"], bits=64)
    return EsVcpus(count, _signature(settings), FpuProfile(settings["fpu"]), features, _vmsa_files(settings))


def _signature(settings: dict[str, Any]) -> int:
    from sealift.owner.vcpus import DEFAULT_CPU
    from sealift.sev.vmsa import CPU_SIGNATURES

    name, number = settings["vcpu_type"], settings["vcpu_signature"]
    if name is not None and number is not None:
        raise click.UsageError("--vcpu-type and --vcpu-signature say the same; give one of them")
    if number is None:
        name = DEFAULT_CPU if name is None else name
        if name not in CPU_SIGNATURES:
            raise UserError(f"there is no vCPU type {name!r}; there are {', '.join(CPU_SIGNATURES)}")
        return CPU_SIGNATURES[name]
    return _number("vCPU signature", number, bits=32)


def _number(what: str, text: str, *, bits: int) -> int:
    """A number in decimal or, with 0x, in hexadecimal.

    Raises:
        UserError: it is none, or has more bits.
    """
    try:
        number = int(text, 0)
    except ValueError:
        number = -1
    if not 0 <= number < 1 << bits:
        raise UserError(f"{text!r} is no {what}; write a number of {bits} bits, such as 0x20")
    return number


def _vmsa_files(settings: dict[str, Any]) -> VmsaFiles | None:
    from sealift.address import PAGE_SIZE
    from sealift.owner.files import parsed
    from sealift.owner.vcpus import VmsaFiles, vmsa_page

    first, others = settings["vmsa_cpu0"], settings["vmsa_cpu1"]
    if first is None and others is not None:
        raise click.UsageError("--vmsa-cpu1 goes with --vmsa-cpu0")
    if first is None:
        return None
    _refuse(_COMPUTED, "has no use with --vmsa-cpu0, which has it")
    if others is None and settings["vcpus"] > 1:
        raise click.UsageError(f"of {settings['vcpus']} vCPUs, --vmsa-cpu1 is needed too (or say --vcpus 1)")
    return VmsaFiles(*(parsed("VMSA", path, PAGE_SIZE, vmsa_page) for path in (first, others or first)))


def _refuse(names: tuple[str, ...], reason: str) -> None:
    """Refuse options that were given though they mean nothing here.

    Raises:
        UsageError: one was.
    """
    for name in names:
        if _said(name):
            raise click.UsageError(f"--{name.replace('_', '-')} {reason}")


def _said(name: str) -> bool:
    """Whether the user gave the option."""
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE
