"""Masking and selection are libvirt's: generated descriptors and guests, judged by ``virsh``."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any, Final

import pytest

from firmware.descriptors import flash, write
from libvirt import Virsh
from sealift.firmware.lookup import look_up
from sealift.firmware.selection import Wanted, judge

GUESTS: Final = 70
MACHINES: Final = {"pc-q35-7.2": ["pc-q35-*"], "pc-i440fx-7.2": ["pc-i440fx-*", "pc-q35-*"]}
_IMAGE: Final = re.compile(r'"filename":"([^"]*\.fd)"|file=([^,\s]*\.fd)')


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """What packages and what the administrator have: good, masked and replaced descriptors.

    No bad ones: libvirt 9 uses no firmware at all if there is one, where later releases pass it over.
    """
    chance = random.Random(311)
    packages, administrators, images = (tmp_path_factory.mktemp(name) for name in ("share", "etc", "fw"))
    for number in range(40):
        members: dict[str, Any] = {"features": _features(chance), "targets": [_target(chance)]}
        directory = chance.choice([packages, packages, administrators])
        mode = chance.choice([None, None, None, "stateless", "combined"])
        members["mapping"] = flash(_image(images, f"{number:02}"), mode=mode, template=not mode)
        write(directory, f"{number:02}.json", **members)
        if directory is packages and chance.random() < 0.2:
            (administrators / f"{number:02}.json").touch()
        elif directory is packages and chance.random() < 0.2:
            write(
                administrators,
                f"{number:02}.json",
                **members | {"mapping": flash(_image(images, f"{number:02}-local"))},
            )
    (packages / ".hidden.json").write_text(json.dumps("never read"))
    return packages, administrators


def _image(directory: Path, name: str) -> str:
    """An image that is there, as it must be for libvirt to list it."""
    (path := directory / f"{name}.fd").touch()
    return str(path)


def _features(chance: random.Random) -> list[str]:
    found = [name for name in ("acpi-s3", "acpi-s4", "amd-sev", "not-yet-known") if chance.random() < 0.25]
    if chance.random() < 0.3:
        found += ["secure-boot", "requires-smm"]
        found += ["enrolled-keys"] if chance.random() < 0.5 else []
    return found


def _target(chance: random.Random) -> dict[str, Any]:
    return {
        "architecture": chance.choice(["x86_64", "x86_64", "x86_64", "aarch64"]),
        "machines": chance.choice(list(MACHINES.values())),
    }


def guest(chance: random.Random) -> tuple[str, Wanted]:
    """A guest as libvirt's XML has it, and what it needs in our words."""
    machine = chance.choice(list(MACHINES))
    features: set[str] = set()
    without: set[str] = set()
    smm: bool | None = None
    said: list[str] = []
    for name in ("secure-boot", "enrolled-keys"):
        if (word := chance.choice([None, None, "yes", "no"])) is not None:
            said.append(f"<feature enabled='{word}' name='{name}'/>")
            (features if word == "yes" else without).add(name)
    if ("enrolled-keys" in features and "secure-boot" in without) or machine != "pc-q35-7.2":
        said = []
        features.clear()
        without.clear()  # libvirt would refuse it for its own reasons
    loader = ""
    if not said and machine == "pc-q35-7.2" and chance.random() < 0.5:
        loader, smm = "<loader secure='yes'/>", True
    pm = ""
    for name, tag in (("acpi-s3", "suspend-to-mem"), ("acpi-s4", "suspend-to-disk")):
        if chance.random() < 0.3:
            pm += f"<{tag} enabled='yes'/>"
            features.add(name)
    firmware = f"<firmware>{''.join(said)}</firmware>" if said else ""
    xml = (
        "<domain type='qemu'><name>a</name><memory>65536</memory>"
        f"<os firmware='efi'><type arch='x86_64' machine='{machine}'>hvm</type>{firmware}{loader}</os>"
        f"<features><acpi/></features><pm>{pm}</pm></domain>"
    )
    return xml, Wanted(
        machine=machine, interface="uefi", features=frozenset(features), without=frozenset(without), smm=smm
    )


def chosen(directories: tuple[Path, Path], wanted: Wanted) -> str | None:
    for one in judge(look_up(directories).files, wanted):
        if not one.reasons and one.found.descriptor is not None:
            return one.found.descriptor.mapping.path
    return None


def test_masking_and_selection_are_libvirts(
    directories: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    virsh = Virsh(tmp_path_factory.mktemp("libvirt"))
    virsh.with_firmware(*directories)
    scratch, chance = tmp_path_factory.mktemp("guests"), random.Random(312)
    guests = [guest(chance) for _ in range(GUESTS)]
    commands = []
    for number, (xml, _) in enumerate(guests):
        (path := scratch / f"{number}.xml").write_text(xml)
        commands.append(f"domxml-to-native qemu-argv --xml {path}")
    *argvs, capabilities = virsh.ask([*commands, "domcapabilities --virttype qemu --machine pc-q35-7.2"])

    fit = [
        one.found.descriptor
        for one in judge(look_up(directories).files, Wanted(interface="uefi"))
        if one.found.descriptor
    ]
    on_q35 = [
        found.mapping.path for found in fit if any(target.fits("x86_64", "pc-q35-7.2") for target in found.targets)
    ]
    assert re.findall(r"<value>(/.*)</value>", capabilities) == on_q35

    choices = set()
    for (xml, wanted), argv in zip(guests, argvs, strict=True):
        ours = chosen(directories, wanted)
        choices.add(ours)
        match = _IMAGE.search(argv)
        theirs = match[1] or match[2] if match else None
        if theirs is None:
            assert "Unable to find any firmware" in argv, argv
        assert ours == theirs, xml
    assert len(choices) > 5
