"""Baselines and comparisons are libvirt's: the same rules over libvirt's own models, judged by ``virsh``."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

from libvirt import Virsh, cpu_map
from sealift.cpu.choice import NOT_MIGRATABLE, Verdict, baseline, compare
from sealift.cpu.description import CpuDescription
from sealift.errors import UserError

BASELINES: Final = 80
COMPARISONS: Final = 60
EXTRAS: Final = (
    "aes",
    "avx",
    "f16c",
    "fma",
    "invtsc",
    "movbe",
    "pcid",
    "popcnt",
    "rdrand",
    "sse4a",
    "svm",
    "vmx",
    "xsaves",
)


def cpus(chance: random.Random, count: int) -> list[CpuDescription]:
    """Hosts, mostly of one vendor, of models with features added."""
    models = cpu_map()[0].models
    vendor = chance.choice(["Intel", "AMD", ""])
    usual = [model for model in models if not vendor or model.vendor in {vendor, ""}]
    found = []
    for _ in range(count):
        model = chance.choice(usual if chance.random() < 0.95 else models)
        extra = frozenset(chance.sample(EXTRAS, chance.randrange(4)))
        found.append(CpuDescription(model.name, model.features | extra, model.vendor))
    return found


def as_xml(cpu: CpuDescription, arch: str = "") -> str:
    """As virsh reads it."""
    model = cpu_map()[0].find(cpu.name)
    vendor = f"<vendor>{cpu.vendor}</vendor>" if cpu.vendor else ""
    if arch:
        features = "".join(f"<feature name='{name}'/>" for name in cpu.features - model.features)
        return f"<cpu><arch>{arch}</arch><model>{cpu.name}</model>{vendor}{features}</cpu>"
    features = "".join(f"<feature policy='require' name='{name}'/>" for name in cpu.features - model.features)
    features += "".join(f"<feature policy='disable' name='{name}'/>" for name in model.features - cpu.features)
    return f"<cpu mode='custom' match='exact'><model>{cpu.name}</model>{vendor}{features}</cpu>"


def our_baseline(hosts: list[CpuDescription], *, migratable: bool) -> object:
    try:
        found = baseline(hosts, cpu_map()[0], migratable=migratable)
    except UserError:
        return None
    return found.model, found.vendor, set(found.added), set(found.removed)


def their_baseline(said: str) -> object:
    if "error:" in said:
        return None
    root = ET.fromstring(said)
    features: dict[str, set[str]] = {"require": set(), "disable": set()}
    for feature in root.findall("feature"):
        features[feature.attrib["policy"]].add(feature.attrib["name"])
    model = root.findtext("model", "")
    removed = features["disable"] & cpu_map()[0].find(model).features
    return model, root.findtext("vendor", ""), features["require"], removed


def test_what_cannot_be_moved_is_what_libvirt_says() -> None:
    assert cpu_map()[1] == NOT_MIGRATABLE


def test_baselines_are_libvirts(virsh: Virsh, tmp_path: Path) -> None:
    chance = random.Random(2611)
    cases, commands = [], []
    for number in range(BASELINES):
        hosts, migratable = cpus(chance, chance.randrange(1, 4)), chance.random() < 0.5
        (path := tmp_path / f"{number}.xml").write_text("".join(as_xml(host, "x86_64") for host in hosts))
        commands.append(f"cpu-baseline {'--migratable ' if migratable else ''}{path}")
        cases.append((hosts, migratable))
    answers = virsh.ask(commands)
    assert sum("error:" in answer for answer in answers) < BASELINES / 4  # most of them have an answer
    for (hosts, migratable), said in zip(cases, answers, strict=True):
        assert our_baseline(hosts, migratable=migratable) == their_baseline(said), (hosts, said)


def test_comparisons_are_libvirts(virsh: Virsh, tmp_path: Path) -> None:
    """Libvirt compares with the processor it runs on, which it describes as a model and what that has besides."""
    models = cpu_map()[0]
    described = ET.fromstring(virsh.ask(["capabilities"])[0]).find("host/cpu")
    assert described is not None
    model = models.find(described.findtext("model", ""))
    features = model.features | {feature.attrib["name"] for feature in described.findall("feature")}
    host = CpuDescription("host", frozenset(features), described.findtext("vendor", ""))

    chance = random.Random(2711)
    wanted = [CpuDescription(model.name, host.features, host.vendor)]
    for _ in range(COMPARISONS):
        (cpu,) = cpus(chance, 1)
        if chance.random() < 0.7:  # only a CPU cut to the host's is compatible with it
            cpu = CpuDescription(cpu.name, cpu.features & host.features, chance.choice([host.vendor, ""]))
        wanted.append(cpu)
    commands = []
    for number, cpu in enumerate(wanted):
        (path := tmp_path / f"{number}.xml").write_text(as_xml(cpu))
        commands.append(f"cpu-compare --error {path}")
    seen = set()
    for cpu, said in zip(wanted, virsh.ask(commands), strict=True):
        found = compare(cpu, host)
        seen.add(found.verdict)
        if "incompatible" in said:
            assert found.verdict is Verdict.INCOMPATIBLE, (cpu, said)
            if found.vendors is None:
                named = said.partition("required features: ")[2]
                assert set(named.split(", ")) == set(found.missing), said
        else:
            assert ("is identical" in said) == (found.verdict is Verdict.IDENTICAL), (cpu, said)
            assert ("is a superset" in said) == (found.verdict is Verdict.SUPERSET), (cpu, said)
    assert seen == set(Verdict)
