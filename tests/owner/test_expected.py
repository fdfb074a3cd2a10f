"""A measurement that does not match: the inputs that differ are named, and never others."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from typing import Any

import pytest

from launch.flashes import firmware_image
from sealift.launch.flash import FlashImage
from sealift.launch.image import GuestRecipe
from sealift.launch.kernelhashes import KernelHashes
from sealift.launch.machine import MachineType
from sealift.launch.ram import ram_layout
from sealift.owner.expected import Expectation, Terms
from sealift.owner.guestimage import DirectBoot, FirmwareBoot, GuestImage, KernelFiles, digest_of
from sealift.owner.vcpus import EsVcpus
from sealift.sev.measurement import FirmwareVersion
from sealift.sev.policy import Policy, parse_policy
from sealift.sev.session import TransportKeys
from sealift.sev.vmsa import CPU_SIGNATURES, FpuProfile

KEYS = TransportKeys(b"TEK of sixteen b", b"TIK of sixteen b")
TERMS = Terms(KEYS, FirmwareVersion(1, 55, 25), parse_policy("nodbg,nosend"))
FILES = KernelFiles(b"a kernel", b"an initrd", "console=ttyS0")
FIRMWARE = FirmwareBoot(FlashImage.decode(firmware_image()), FILES, FILES.hashes())
ES = replace(FIRMWARE, vcpus=EsVcpus(2))
ES_TERMS = replace(TERMS, policy=parse_policy("nodbg,nosend,es"))


def measured(image: GuestImage, terms: Terms) -> bytes:
    return terms.measure(digest_of(image.buffers()), os.urandom(16))


def diagnosis(actual: bytes, image: GuestImage = FIRMWARE, terms: Terms = TERMS) -> list[tuple[str, ...]]:
    expectation = Expectation(image, terms)
    assert not expectation.matches(actual)
    return expectation.diagnose(actual)


def test_the_expected_measurement_matches() -> None:
    assert Expectation(FIRMWARE, TERMS).matches(measured(FIRMWARE, TERMS))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"policy": Policy.NODBG}, "policy 0x1 (nodbg) instead of 0x9 (nodbg,nosend)"),
        ({"policy": Policy(0)}, "policy 0x0 (0) instead of 0x9 (nodbg,nosend)"),
        ({"version": FirmwareVersion(1, 55, 24)}, "firmware 1.55.24 instead of 1.55.25"),
        ({"version": FirmwareVersion(1, 51, 25)}, "firmware 1.51.25 instead of 1.55.25"),
        ({"version": FirmwareVersion(0, 24, 15)}, "firmware 0.24.15 instead of 1.55.25"),
        (
            {"version": FirmwareVersion(0, 16, 9)},
            "the form of firmware before API 0.17, which binds no version",
        ),
        ({"transport": TransportKeys(KEYS.tik, KEYS.tek)}, "TEK and TIK in each other's place"),
        ({"transport": TransportKeys.absent()}, "no launch session (a TIK of zeros)"),
    ],
)
def test_another_term_is_named(changes: dict[str, Any], words: str) -> None:
    assert diagnosis(measured(FIRMWARE, replace(TERMS, **changes))) == [(words,)]


def test_a_policy_that_lost_its_api_version_is_named() -> None:
    terms = replace(TERMS, policy=parse_policy("nodbg,api=1.55"))
    actual = measured(FIRMWARE, replace(TERMS, policy=Policy.NODBG))
    assert diagnosis(actual, terms=terms) == [("policy 0x1 (nodbg) instead of 0x37010001 (nodbg,api=1.55)",)]


@pytest.mark.parametrize(
    ("hashes", "words"),
    [
        (None, "no kernel hashes (QEMU's kernel-hashes=off)"),
        (KernelFiles(b"a kernel", b"", "console=ttyS0").hashes(), "no initrd"),
        (KernelFiles(b"an initrd", b"a kernel", "console=ttyS0").hashes(), "kernel and initrd in each other's place"),
        (KernelFiles(b"a kernel", b"an initrd", "").hashes(), "an empty command line"),
        (
            KernelFiles(b"a kernel", b"an initrd", "console=ttyS0\n").hashes(),
            "a command line that ends with a line break",
        ),
        (KernelFiles(b"a kernel", b"an initrd", "console=ttyS0 ").hashes(), "a command line that ends with a blank"),
        (
            KernelFiles(b"a kernel", b"an initrd", "console=ttyS0\0").hashes(),
            "a command line with one more NUL at its end",
        ),
        (
            replace(FILES.hashes(), command_line=hashlib.sha256(b"console=ttyS0").digest()),
            "a command line hashed without its terminating NUL",
        ),
    ],
)
def test_other_kernel_files_are_named(hashes: KernelHashes | None, words: str) -> None:
    assert diagnosis(measured(replace(FIRMWARE, hashes=hashes), TERMS)) == [(words,)]


def test_hashes_that_were_measured_unexpectedly_are_named() -> None:
    expected = replace(FIRMWARE, hashes=None)
    assert diagnosis(measured(FIRMWARE, TERMS), expected) == [("kernel hashes (QEMU's kernel-hashes=on)",)]


@pytest.mark.parametrize(
    ("vcpus", "words"),
    [
        (EsVcpus(5), "5 vCPUs instead of 2"),
        (EsVcpus(1), "1 vCPU instead of 2"),
        (EsVcpus(2, fpu=FpuProfile.LEGACY), "FPU profile legacy instead of init2"),
        (EsVcpus(2, features=0x20), "SEV features 0x20 instead of 0x0"),
        (EsVcpus(2, CPU_SIGNATURES["EPYC-Milan"]), "vCPU type EPYC-Milan (0xa00f11) instead of 0x800f12"),
        (None, "no VMSAs (a guest without SEV-ES)"),
    ],
)
def test_other_vcpus_are_named(vcpus: EsVcpus | None, words: str) -> None:
    assert diagnosis(measured(replace(ES, vcpus=vcpus), ES_TERMS), ES, ES_TERMS) == [(words,)]


def test_two_changes_are_found_if_no_single_one_does_it() -> None:
    actual = measured(replace(ES, vcpus=EsVcpus(3)), replace(ES_TERMS, version=FirmwareVersion(1, 55, 21)))
    assert diagnosis(actual, ES, ES_TERMS) == [("3 vCPUs instead of 2", "firmware 1.55.21 instead of 1.55.25")]


def test_a_guest_with_es_where_none_was_expected_is_named() -> None:
    actual = measured(replace(ES, vcpus=EsVcpus(4, fpu=FpuProfile.LEGACY)), ES_TERMS)
    assert diagnosis(actual) == [
        (
            "the VMSAs of 4 vCPUs of type EPYC, FPU profile legacy",
            "policy 0xd (nodbg,es,nosend) instead of 0x9 (nodbg,nosend)",
        )
    ]


def test_what_nothing_explains_gets_no_explanation() -> None:
    """Test another image, other keys and plain noise: none of them is blamed on an input that was right."""
    other = replace(FIRMWARE, firmware=FlashImage.decode(firmware_image()[:-16] + bytes(16)))
    strangers = replace(TERMS, transport=TransportKeys.fresh())
    for actual in (measured(other, TERMS), measured(FIRMWARE, strangers), os.urandom(48)):
        assert diagnosis(actual) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vcpus": 3}, "3 vCPUs instead of 2"),
        ({"layout": ram_layout(64 << 20, MachineType.BARE)}, "64 MiB of memory"),
        ({"command_line": "quiet "}, "a command line that ends with a blank"),
        ({"command_line": ""}, "an empty command line"),
        ({"payload": b""}, "no payload"),
        ({"es": True}, "a guest with SEV-ES"),
        ({"kernel": None, "payload": b"", "command_line": ""}, "the receiver's image, without a kernel"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_our_own_images_are_explained_too(recipe: GuestRecipe, changes: dict[str, Any], words: str) -> None:
    image = DirectBoot(recipe)
    ((found,),) = diagnosis(measured(DirectBoot(replace(recipe, **changes)), TERMS), image)
    assert found.startswith(words)
