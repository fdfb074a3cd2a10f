"""Which firmware a guest gets: the first descriptor that has all it needs, as libvirt selects it.

Source: QEMU ``docs/interop/firmware.json``; libvirt, "Firmware autoselection" (``<os firmware='efi'>``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sealift.firmware.descriptor import Descriptor, FlashMapping, Format, Interface, Mode
from sealift.firmware.lookup import Found


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a guest needs.

    Attributes:
        architecture, machine: its machine's; without a machine any of that architecture will do.
        interface: what its boot loader speaks.
        path: of the image that it must be.
        features: that the firmware must have.
        without: features that it must not have.
        smm: whether only guests with system management mode can run it; None leaves that open.
        device: how it is mapped; None leaves that open.
        mode: of a flash image.
        format: of a flash image; None leaves that open.
    """

    architecture: str = "x86_64"
    machine: str | None = None
    interface: Interface | None = None
    path: str | None = None
    features: frozenset[str] = frozenset()
    without: frozenset[str] = frozenset()
    smm: bool | None = None
    device: str | None = None
    mode: Mode = "split"
    format: Format | None = None


def reasons_against(descriptor: Descriptor, wanted: Wanted) -> Iterator[str]:
    """Why it cannot be this one; nothing if it can."""
    if wanted.interface and wanted.interface not in descriptor.interface_types:
        yield f"it has no interface {wanted.interface}"
    if wanted.path is not None and descriptor.mapping.path != wanted.path:
        yield f"its image is {descriptor.mapping.path}"
    if not any(target.fits(wanted.architecture, wanted.machine) for target in descriptor.targets):
        yield f"it is not for {wanted.architecture}{f' {wanted.machine}' if wanted.machine else ''}"
    if lacking := wanted.features - descriptor.known:
        yield f"it lacks {', '.join(sorted(lacking))}"
    if unwanted := wanted.without & descriptor.known:
        yield f"it has {', '.join(sorted(unwanted))}"
    needs_smm = "requires-smm" in descriptor.known
    if wanted.smm is not None and wanted.smm != needs_smm:
        yield "it requires SMM" if needs_smm else "it does not require SMM"
    yield from _of_mapping(descriptor, wanted)


def _of_mapping(descriptor: Descriptor, wanted: Wanted) -> Iterator[str]:
    mapping = descriptor.mapping
    if wanted.device and mapping.device != wanted.device:
        yield f"it is mapped as {mapping.device}"
    if isinstance(mapping, FlashMapping):
        if mapping.mode != wanted.mode:
            yield f"its flash image is {mapping.mode}, not {wanted.mode}"
        if wanted.format and mapping.executable.format != wanted.format:
            yield f"its flash image has format {mapping.executable.format}"


@dataclass(frozen=True, slots=True)
class Judged:
    """One file, and why it was not chosen; no reasons for the one that was."""

    found: Found
    reasons: tuple[str, ...]


def judge(files: Iterable[Found], wanted: Wanted) -> list[Judged]:
    """Every file in the order of preference; at most one without reasons, and that is the choice."""
    judged: list[Judged] = []
    chosen = None
    for found in files:
        if found.descriptor is None:
            reasons: tuple[str, ...] = (found.problem or "an empty file hides it",)
        else:
            reasons = tuple(reasons_against(found.descriptor, wanted))
            if not reasons and chosen is not None:
                reasons = (f"{chosen} comes before it",)
            elif not reasons:
                chosen = found.name
        judged.append(Judged(found, reasons))
    return judged
