"""The target's part of a preflight: judges a guest that might come, and lets the way be measured. It makes nothing.

Every check of `target` and of the method's entrance has its like here, but none of them ends the others.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from sealift.errors import LostError, PeerError, SealiftError, StreamError, sentence
from sealift.launch.machine import MachineType
from sealift.sev import certificate
from sealift.sev.policy import Policy
from sealift.vmm.devices.disk import DiskImage
from sealift.vmm.launch import evidence_of
from sealift.vmm.migration.streamio import EndedError, StreamReader
from sealift.vmm.platform import Platform
from sealift.wire.handover import Disk, Method, Transfer
from sealift.wire.inquiry import (
    PROBE_LIMIT,
    PROBES_LIMIT,
    Answer,
    InquiryFrame,
    InquiryKind,
    Question,
    read_frame_front,
    read_front,
    read_question,
)
from sealift.wire.obstacle import Code, Obstacle
from sealift.wire.owner import OwnerService
from sealift.wire.platform import Judged, JudgeGuest, PdhCertExport, PdhCertificates

_MEASURING_LIMIT_S: Final = 10.0
"""For all probes of one inquiry: an honest one takes a tenth of a second, or as long as one probe over a slow way. Who
is measured takes one of the target's places for whoever comes, which a source needs."""

_TIGHT: Final = 1.125
"""Of a guest's memory, what should be available: page tables, rings and buffers come on top."""


def memory_available() -> int:
    """Bytes this machine could give without swapping, as Linux estimates it (MemAvailable in proc(5))."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Premises:
    """What an examiner looks at.

    Attributes:
        platform: the platform process that the next guest would be on.
        owner: is asked for its opinion (method mh).
        disks: opens the images that a guest finds here; the examiner closes them.
        memory_available: bytes.
        plain: whether a guest is awaited that is not confidential, and no other.
        wall_clock: seconds since the epoch.
    """

    platform: Callable[[], Platform]
    owner: OwnerService
    disks: Callable[[], tuple[DiskImage, ...]]
    memory_available: Callable[[], int] = memory_available
    wall_clock: Callable[[], float] = time.time
    plain: bool = False


class Examiner:
    """Says everything that keeps a guest from coming here."""

    def __init__(self, premises: Premises) -> None:
        self._premises = premises

    def judge(self, question: Question) -> Answer:
        """What is in the way of this guest.

        Raises:
            SealiftError: this host cannot even say that, as its platform does not start.
        """
        platform = self._premises.platform()
        obstacles = [
            *_manner(question),
            *compare_types(question.method, plain=self._premises.plain),
            *_machine(platform, question),
            *self._memory(question),
            *self._disks(question),
            *_firmware(platform, question),
            *self._method(platform, question),
        ]
        return Answer(tuple(obstacles), self._premises.wall_clock())

    def _memory(self, question: Question) -> Iterator[Obstacle]:
        available = self._premises.memory_available()
        have = f"the guest has {_mib(question.ram)} of memory, and the target's host {_mib(available)} available"
        if available < question.ram:
            yield Obstacle(Code.RAM_SHORT, have)
        elif available < question.ram * _TIGHT:
            yield Obstacle(Code.RAM_TIGHT, have)

    def _disks(self, question: Question) -> Iterator[Obstacle]:
        try:
            images = self._premises.disks()
        except SealiftError as error:
            yield Obstacle(Code.DISKS_MISSING, sentence(error))
            return
        with contextlib.ExitStack() as opened:
            for image in images:
                opened.callback(image.close)
            yield from compare_disks(images, question.disks)

    def _method(self, platform: Platform, question: Question) -> Iterator[Obstacle]:
        match question.method:
            case Method.MH.value:
                yield from self._owner(platform, question)
            case Method.PSP.value if Policy.DOMAIN in Policy(question.policy):
                exported = platform.request(PdhCertExport(), PdhCertificates)
                if exported.cert_chain[certificate.SIZE :][: certificate.SIZE] != question.oca:
                    yield Obstacle(Code.DOMAIN, "the policy has DOMAIN, and the target's platform has another owner")

    def _owner(self, platform: Platform, question: Question) -> Iterator[Obstacle]:
        evidence = evidence_of(platform)
        try:
            opinion = self._premises.owner.judge_receiver(evidence, question.measure)
        except PeerError as error:
            opinion = (Obstacle(Code.OWNER, sentence(error)),)
        yield from opinion
        if evidence.handler_digest != question.handler and not any(said.code is Code.HANDLER for said in opinion):
            yield Obstacle(Code.HANDLER_DIFFERS, "the target has another version of the migration handler")


def _manner(question: Question) -> Iterator[Obstacle]:
    """Words that a target of this version knows, or not."""
    for code, what, word, known in (
        (Code.METHOD, "migration method", question.method, [method.value for method in Method]),
        (Code.TRANSFER, "transfer", question.transfer, [transfer.value for transfer in Transfer]),
        (Code.MACHINE, "machine type", question.machine, [kind.value for kind in MachineType]),
    ):
        if word not in known:
            yield Obstacle(code, f"the target does not know the {what} {word!r}; it knows {', '.join(known)}")


def compare_types(method: str, *, plain: bool) -> Iterator[Obstacle]:
    """A guest that comes by this method must be of the type that is awaited: `plain`, or confidential."""
    if (method == Method.PLAIN.value) is plain:
        return
    comes, awaited = ("confidential", "plain") if plain else ("plain", "confidential")
    yield Obstacle(
        Code.TYPE, f"the guest is {comes}, and the target waits for a {awaited} one (`sealift run --type` says which)"
    )


def _machine(platform: Platform, question: Question) -> tuple[Obstacle, ...]:
    """Engine, CPU, C-bit, shape: what the platform says."""
    wanted = JudgeGuest(
        engine=question.engine,
        ram=question.ram,
        vcpus=question.vcpus,
        irqchip=question.machine == MachineType.MICROVM.value,
        es=Policy.ES in Policy(question.policy),
        cbit=question.cbit,
        cpu=question.cpu,
        plain=question.method == Method.PLAIN.value,
    )
    return platform.request(wanted, Judged).obstacles


def _firmware(platform: Platform, question: Question) -> Iterator[Obstacle]:
    info, least = platform.info(), Policy(question.policy).api
    if (info.api_major, info.api_minor) < least:
        have, want = f"{info.api_major}.{info.api_minor}", ".".join(map(str, least))
        yield Obstacle(Code.FIRMWARE, f"the target's firmware has API {have}, and the guest's policy asks for {want}")


def compare_disks(here: tuple[DiskImage, ...], there: tuple[Disk, ...]) -> Iterator[Obstacle]:
    """Every disk of the guest needs an image here that looks the same to it."""
    if len(here) != len(there):
        yield Obstacle(
            Code.DISKS_MISSING,
            f"the guest has {len(there)} disk(s), and this target was given {len(here)}; give it the same images "
            "with --disk",
        )
    for image, disk in zip(here, there, strict=False):
        if (image.sectors, image.read_only) != (disk.sectors, disk.read_only):
            yield Obstacle(
                Code.DISK_DIFFERS,
                f"the disk image {image.path} has {image.sectors} sectors and is {_ACCESS[image.read_only]}; the "
                f"guest's disk has {disk.sectors} and is {_ACCESS[disk.read_only]}",
            )


_ACCESS: Final = {True: "read-only", False: "writable"}


def _mib(size: int) -> str:
    return f"{size >> 20} MiB"


def serve(
    reader: StreamReader,
    send: Callable[[bytes], None],
    examiner: Examiner,
    limit_s: float,
    measuring_s: float = _MEASURING_LIMIT_S,
) -> None:
    """Answer one inquiry, to its end, or only be measured.

    Whoever asks has `limit_s` for the question, and `measuring_s` for all probes.

    Raises:
        SealiftError: the source breaks the rules, or this host cannot judge.
    """
    with reader.within(limit_s):
        read_front(reader.take)
        asks = reader.peek(1, 1)[0] != InquiryKind.PROBE
        question = read_question(reader.take) if asks else None
    if question is not None:
        send(InquiryFrame(InquiryKind.ANSWER, msgspec.msgpack.encode(examiner.judge(question))).encode())
    with contextlib.suppress(EndedError), reader.within(measuring_s):
        _be_measured(reader, send)


def _be_measured(reader: StreamReader, send: Callable[[bytes], None]) -> None:
    """Take probes until the source leaves (EndedError), or has sent more than anybody needs."""
    nothing = memoryview(bytearray(PROBE_LIMIT))
    for _ in range(PROBES_LIMIT):
        kind, length = read_frame_front(reader.take)
        if kind is not InquiryKind.PROBE:
            raise StreamError(f"an inquiry sent {kind.name} where PROBE was due")
        reader.into(nothing[:length])
        send(InquiryFrame(InquiryKind.ECHO).encode())
    raise LostError(f"an inquiry of more than {PROBES_LIMIT} probes is measured long enough")
