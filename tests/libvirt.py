"""libvirt as a judge: ``virsh`` with the QEMU driver inside it, which needs no daemon, and libvirt's own CPU map.

The driver looks up the user and group it would run QEMU as, so these must exist (Debian: ``libvirt-qemu``).
"""

from __future__ import annotations

import grp
import os
import pwd
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

import judges
from sealift.cpu.library import Library, Model

CPU_MAP: Final = Path("/usr/share/libvirt/cpu_map")
DRIVER: Final = Path("/usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so")
_CONFIGURATION: Final = 'user = "root"\ngroup = "root"\nsecurity_driver = "none"\n'
_PROMPT: Final = "virsh # "
_MARK: Final = "-NEXT-"


class Virsh:
    """One libvirt whose files are all in `root`; a run of virsh answers many commands."""

    def __init__(self, root: Path) -> None:
        self._program = judges.program("virsh", "libvirt-clients")
        judges.file(DRIVER, "libvirt-daemon-driver-qemu")
        judges.program("qemu-system-x86_64", "qemu-system-x86")
        if os.geteuid():
            judges.missing("libvirt's QEMU driver reads what only root has")
        try:
            pwd.getpwnam("libvirt-qemu")
            grp.getgrnam("libvirt-qemu")
            grp.getgrnam("kvm")
        except KeyError:
            judges.missing("there is no user libvirt-qemu, or no group of that name, or no group kvm")
        (root / "etc").mkdir()
        (root / "etc" / "qemu.conf").write_text(_CONFIGURATION)
        self._root = root
        self._mounts: tuple[str, ...] = ()

    def with_firmware(self, packages: Path, administrators: Path) -> None:
        """Have it see these two directories of descriptors, in a mount namespace of its own."""
        script = (
            "mount -t tmpfs none /mnt && mkdir /mnt/upper /mnt/work"
            " && mount -t overlay -o lowerdir=/etc,upperdir=/mnt/upper,workdir=/mnt/work none /etc"
            f" && mkdir -p /etc/qemu/firmware && mount --bind {administrators} /etc/qemu/firmware"
            f' && mount --bind {packages} /usr/share/qemu/firmware && exec "$@"'
        )
        self._mounts = ("unshare", "--mount", "sh", "-c", script, "sh")

    def ask(self, commands: Sequence[str]) -> list[str]:
        """What each command says, errors included, in this order."""
        marked = "".join(f"echo {_MARK}\n{command}\n" for command in commands)
        ran = subprocess.run(
            [*self._mounts, self._program, "-c", f"qemu:///embed?root={self._root}"],
            input=f"{marked}echo {_MARK}\n",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=100,
        )
        pieces = ran.stdout.split(f"{_PROMPT}echo {_MARK}\n{_MARK}\n")[1:-1]
        assert len(pieces) == len(commands), ran.stdout
        return [piece.strip().partition("\n")[2].strip() for piece in pieces]  # the command itself comes first


@cache
def cpu_map() -> tuple[Library, frozenset[str]]:
    """The models libvirt has for guests, in its order, as a library; and what it holds to be not migratable."""
    index = judges.file(CPU_MAP / "index.xml", "libvirt0")
    (arch,) = ET.parse(index).getroot().findall("arch[@name='x86']")
    models: dict[str, Model] = {}
    fixed = set()
    for include in arch.iter("include"):
        root = ET.parse(CPU_MAP / include.attrib["filename"]).getroot()
        for feature in root.findall("feature"):
            if feature.get("migratable") == "no":
                fixed.add(feature.attrib["name"])
        for element in root.findall("model"):
            decode = element.find("decode")
            if decode is not None and decode.attrib["guest"] == "off":
                continue  # libvirt knows it, and makes no guest's CPU of it
            models[element.attrib["name"]] = _model(element, models)
    return Library(models.values()), frozenset(fixed)


def _model(element: ET.Element, known: dict[str, Model]) -> Model:
    base = element.find("model")
    features = known[base.attrib["name"]].features if base is not None else frozenset[str]()
    vendor = element.find("vendor")
    named = vendor.attrib["name"] if vendor is not None else ""
    if vendor is None and base is not None:
        named = known[base.attrib["name"]].vendor
    for feature in element.findall("feature"):
        if feature.get("removed") == "yes":
            continue  # a model that had it once: libvirt tells hypervisors to leave it out, and counts it as nothing
        changed = {feature.attrib["name"]}
        features = features - changed if feature.get("policy") == "disable" else features | changed
    return Model(name=element.attrib["name"], features=features, vendor=named)
