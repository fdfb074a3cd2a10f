"""The two kinds of launch image an owner can expect: Sealift's own, and a firmware image as QEMU launches it.

Each lists the buffers in the order in which they are measured, and other images that differ from it in one respect:
what a measurement that does not match may be of.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol, TypeAlias

from sealift.errors import UserError
from sealift.launch.flash import FlashImage
from sealift.launch.image import GuestRecipe
from sealift.launch.kernelhashes import KernelHashes
from sealift.launch.pieces import Content
from sealift.launch.ram import ram_layout
from sealift.owner.measured import Buffer
from sealift.owner.vcpus import EsVcpus, counted, plain_variants

_TRIED_COUNTS: Final = 16
"""vCPU counts that are tried for our own image, whose table names the count: each costs reading the image again."""

_TRIED_MEMORY: Final = tuple(1 << shift for shift in range(25, 36))
"""Bytes of memory that are tried, 32 MiB to 32 GiB."""


class GuestImage(Protocol):
    """A launch image."""

    def buffers(self) -> Iterator[Buffer]:
        """What is measured, in order."""

    def variants(self) -> Iterator[Variant]:
        """Images that differ in one respect."""


Variant: TypeAlias = tuple[str, GuestImage]
"""An image, and the words for how it differs."""


def digest_of(buffers: Iterable[Buffer]) -> bytes:
    """SHA-256 over all of them: the launch digest."""
    whole = hashlib.sha256()
    for buffer in buffers:
        whole.update(buffer.data)
    return whole.digest()


@dataclass(frozen=True, slots=True)
class KernelFiles:
    """What QEMU's -kernel, -initrd and -append name."""

    kernel: Content = field(repr=False)
    initrd: Content = field(default=b"", repr=False)
    command_line: str = ""

    def hashes(self) -> KernelHashes:
        """Their hashes."""
        return KernelHashes.of(self.kernel, self.initrd, self.command_line.encode())

    def variants(self) -> Iterator[tuple[str, KernelHashes]]:
        """Hashes of others that differ in one respect."""
        own, empty = self.hashes(), KernelHashes.of(b"", b"", b"")
        if own.initrd != empty.initrd:
            yield "no initrd", replace(own, initrd=empty.initrd)
            yield "kernel and initrd in each other's place", replace(own, kernel=own.initrd, initrd=own.kernel)
        unterminated = hashlib.sha256(self.command_line.encode()).digest()
        yield "a command line hashed without its terminating NUL", replace(own, command_line=unterminated)
        for words, line in _command_lines(self.command_line):
            yield words, replace(own, command_line=KernelHashes.of(b"", b"", line.encode()).command_line)


@dataclass(frozen=True, slots=True)
class FirmwareBoot:
    """A firmware image in QEMU's flash.

    Attributes:
        firmware: the whole of it is measured.
        kernel: what QEMU loads for it; None for nothing.
        hashes: of these files, measured behind the image; None without (QEMU's kernel-hashes=off).
        vcpus: whose VMSAs follow; None for a guest without SEV-ES.
    """

    firmware: FlashImage
    kernel: KernelFiles | None = None
    hashes: KernelHashes | None = None
    vcpus: EsVcpus | None = None

    def buffers(self) -> Iterator[Buffer]:
        """Image, kernel hashes, VMSAs.

        Raises:
            UserError: the firmware has no place for hashes, or does not say where vCPUs begin.
            StreamError: an entry of its table is damaged.
        """
        yield Buffer("firmware", self.firmware.gpa, self.firmware.data)
        if self.hashes is not None:
            yield Buffer("kernel hashes", self.firmware.hashes_area().gpa, self.hashes.encode())
        if self.vcpus is not None:
            yield from _vmsas(self.vcpus.pages(self.firmware.reset_eip), f" ({self.vcpus.source})")

    def variants(self) -> Iterator[Variant]:
        """Other kernel files, other vCPUs."""
        if self.kernel is not None and self.hashes is None:
            yield "kernel hashes (QEMU's kernel-hashes=on)", replace(self, hashes=self.kernel.hashes())
        if self.kernel is not None and self.hashes is not None:
            yield "no kernel hashes (QEMU's kernel-hashes=off)", replace(self, hashes=None)
            yield from ((words, replace(self, hashes=hashes)) for words, hashes in self.kernel.variants())
        if self.vcpus is None:
            yield from ((words, replace(self, vcpus=vcpus)) for words, vcpus in plain_variants())
            return
        yield "no VMSAs (a guest without SEV-ES)", replace(self, vcpus=None)
        yield from ((words, replace(self, vcpus=vcpus)) for words, vcpus in self.vcpus.variants())


@dataclass(frozen=True, slots=True)
class DirectBoot:
    """Sealift's own image: start-up code, table and what the kernel needs.

    Attributes:
        recipe: what is loaded, and what its vCPUs start with.
    """

    recipe: GuestRecipe

    def buffers(self) -> Iterator[Buffer]:
        """Pieces, VMSAs.

        Raises:
            UserError: a file can no longer be read.
        """
        yield from (Buffer(piece.name, piece.gpa, piece.data) for piece in self.recipe.pieces())
        yield from _vmsas(self.recipe.vmsas())

    def variants(self) -> Iterator[Variant]:
        """Other machines, other command lines, no files."""
        recipe = self.recipe
        for count in range(1, _TRIED_COUNTS + 1):
            if count != recipe.vcpus:
                yield from self._with(f"{counted(count)} instead of {recipe.vcpus}", vcpus=count)
        for memory in _TRIED_MEMORY:
            if memory != recipe.layout.size:
                words = f"{memory >> 20} MiB of memory instead of {recipe.layout.size >> 20}"
                yield from self._with(words, layout=ram_layout(memory, recipe.machine))
        for words, line in _command_lines(recipe.command_line):
            yield from self._with(words, command_line=line)
        if len(recipe.initrd):
            yield from self._with("no initrd", initrd=b"")
        yield from self._with("a guest without SEV-ES" if recipe.es else "a guest with SEV-ES", es=not recipe.es)
        if len(recipe.payload):
            yield from self._with("no payload", payload=b"")
        yield from self._with("the receiver's image, without a kernel", **_NO_KERNEL)

    def _with(self, words: str, **fields: Any) -> Iterator[Variant]:  # noqa: ANN401  # GuestRecipe's fields
        """The image with other fields, unless they do not fit together."""
        with contextlib.suppress(UserError):
            yield words, DirectBoot(replace(self.recipe, **fields))


_NO_KERNEL: Final = {"kernel": None, "payload": b"", "command_line": "", "initrd": b""}


def _vmsas(pages: Iterable[bytes], source: str = "") -> Iterator[Buffer]:
    for vcpu, page in enumerate(pages):
        yield Buffer(f"VMSA of vCPU {vcpu}{source}", None, page)


def _command_lines(line: str) -> Iterator[tuple[str, str]]:
    """Other command lines that people get by accident."""
    if line:
        yield "an empty command line", ""
    if line != line.strip():
        yield "a command line without blanks and line breaks around it", line.strip()
    yield "a command line that ends with a line break", f"{line}\n"
    yield "a command line that ends with a blank", f"{line} "
    yield "a command line with one more NUL at its end", f"{line}\0"
