"""A firmware descriptor: JSON that says what a firmware image is and what it is for.

Source: QEMU ``docs/interop/firmware.json``, up to release 10.2. As there, and as libvirt reads it, a feature that is
not known is left out, so that descriptors of later releases can be used; one whose interface, device, architecture or
mode is not known describes something nobody here could start, and does not parse.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal, TypeAlias

import msgspec

from sealift.errors import StreamError

SIZE_LIMIT: Final = 1 << 20
"""Bytes of a descriptor, as libvirt limits them."""

FEATURES: Final = (
    "acpi-s3",
    "acpi-s4",
    "amd-sev",
    "amd-sev-es",
    "amd-sev-snp",
    "enrolled-keys",
    "host-uefi-vars",
    "intel-tdx",
    "requires-smm",
    "secure-boot",
    "verbose-dynamic",
    "verbose-static",
)
INTERFACES: Final = ("bios", "openfirmware", "uboot", "uefi")
ARCHITECTURES: Final = ("aarch64", "arm", "i386", "loongarch64", "riscv64", "x86_64")

Interface: TypeAlias = Literal["bios", "openfirmware", "uboot", "uefi"]
Architecture: TypeAlias = Literal["aarch64", "arm", "i386", "loongarch64", "riscv64", "x86_64"]
Format: TypeAlias = Literal["raw", "qcow2"]
Mode: TypeAlias = Literal["split", "combined", "stateless"]
_Text: TypeAlias = Annotated[str, msgspec.Meta(max_length=4096)]
_Path: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]


class FlashFile(msgspec.Struct, frozen=True):
    """An image for a flash device."""

    filename: _Path
    format: Format


class FlashMapping(msgspec.Struct, frozen=True, tag_field="device", tag="flash", rename="kebab", omit_defaults=True):
    """An image in flash.

    *split*: code that guests share, and a template of variables that each gets a copy of; *combined*: both in one file
    that each gets a copy of; *stateless*: code alone, and nothing is kept.
    """

    executable: FlashFile
    mode: Mode = "split"
    nvram_template: FlashFile | None = None
    device: ClassVar[str] = "flash"

    @property
    def path(self) -> str:
        """Of the image that runs."""
        return self.executable.filename


class _FileMapping(msgspec.Struct, frozen=True):
    """One file and nothing else."""

    filename: _Path

    @property
    def path(self) -> str:
        """Of the image that runs."""
        return self.filename


class KernelMapping(_FileMapping, frozen=True, tag_field="device", tag="kernel"):
    """An image that is loaded as a kernel is."""

    device: ClassVar[str] = "kernel"


class MemoryMapping(_FileMapping, frozen=True, tag_field="device", tag="memory"):
    """An image in ROM."""

    device: ClassVar[str] = "memory"


class IgvmMapping(_FileMapping, frozen=True, tag_field="device", tag="igvm"):
    """A file in the format IGVM, which says itself what goes where."""

    device: ClassVar[str] = "igvm"


Mapping: TypeAlias = FlashMapping | KernelMapping | MemoryMapping | IgvmMapping


class Target(msgspec.Struct, frozen=True):
    """Machines that an image is for; patterns of their names, never aliases such as q35."""

    architecture: Architecture
    machines: tuple[_Text, ...]

    def fits(self, architecture: str, machine: str | None) -> bool:
        """Whether it has this machine; without one, any of that architecture."""
        if architecture != self.architecture:
            return False
        return machine is None or any(fnmatch.fnmatchcase(machine, pattern) for pattern in self.machines)


class Descriptor(msgspec.Struct, frozen=True, rename="kebab"):
    """What one file says; members that are not named here mean nothing."""

    description: _Text
    interface_types: tuple[Interface, ...]
    mapping: Mapping
    targets: tuple[Target, ...]
    features: tuple[_Text, ...]
    tags: tuple[_Text, ...]

    @property
    def known(self) -> frozenset[str]:
        """Its features but those that nobody here knows."""
        return frozenset(self.features) & frozenset(FEATURES)


def decode(data: bytes) -> Descriptor:
    """Parse a descriptor.

    Raises:
        StreamError: it is none; with the place in it.
    """
    if len(data) > SIZE_LIMIT:
        raise StreamError(f"it has more than {SIZE_LIMIT} bytes")
    try:
        found = msgspec.json.decode(data, type=Descriptor)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StreamError(str(error)) from None
    except RecursionError:
        raise StreamError("it is nested too deeply") from None
    if isinstance(found.mapping, FlashMapping) and found.mapping.mode == "split" and not found.mapping.nvram_template:
        raise StreamError("a split image needs an nvram-template - at `$.mapping`")
    return found


def faults(descriptor: Descriptor) -> list[str]:
    """What is wrong with a descriptor that can be used all the same; each with its place."""
    return [*_empty(descriptor), *_bad_features(descriptor.features), *_bad_files(descriptor.mapping)]


def _empty(descriptor: Descriptor) -> Iterator[str]:
    lists: dict[str, tuple[object, ...]] = {
        "interface-types": descriptor.interface_types,
        "targets": descriptor.targets,
    }
    lists |= {f"targets[{index}].machines": target.machines for index, target in enumerate(descriptor.targets)}
    for name, values in lists.items():
        if not values:
            yield f"nothing is listed - at `$.{name}`"


def _bad_features(features: tuple[str, ...]) -> Iterator[str]:
    for index, feature in enumerate(features):
        if feature not in FEATURES:
            yield f"feature {feature!r} is not known - at `$.features[{index}]`"
        elif feature in features[:index]:
            yield f"feature {feature!r} is there twice - at `$.features[{index}]`"
    if {"verbose-dynamic", "verbose-static"} <= set(features):
        yield "verbose-dynamic and verbose-static exclude each other - at `$.features`"
    if "enrolled-keys" in features and "secure-boot" not in features:
        yield "enrolled-keys means nothing without secure-boot - at `$.features`"


def _bad_files(mapping: Mapping) -> Iterator[str]:
    files = {"filename": mapping.path}
    if isinstance(mapping, FlashMapping):
        files = {"executable.filename": mapping.path}
        if mapping.nvram_template:
            files["nvram-template.filename"] = mapping.nvram_template.filename
            if mapping.mode != "split":
                yield f"a {mapping.mode} image has no nvram-template - at `$.mapping.nvram-template`"
    for where, path in files.items():
        if not Path(path).is_file():
            yield f"there is no file {path!r} - at `$.mapping.{where}`"
