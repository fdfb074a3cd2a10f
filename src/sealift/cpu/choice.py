"""Which CPU a guest may have so that it can move: `baseline` of several hosts, and `compare` of a CPU with a host.

Both answer as libvirt does, whose answers the tests compare. A baseline has what all have, is of one vendor, and is
said as a model with as few changes as possible. What it lacks of a model is the worse change: such a guest runs on
hosts of that model, but a tool that knows the model's name alone would give it too much.
Source of the rules: libvirt, "Host CPU configuration" (``virsh cpu-baseline``, ``virsh cpu-compare``).
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from sealift.cpu.description import CpuDescription
from sealift.cpu.library import Library
from sealift.errors import UserError

NOT_MIGRATABLE: Final = frozenset({"invtsc", "xsaves"})
"""What ties a guest to its host: a TSC that never changes its rate, and state that saved guests do not carry."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """A model with changes.

    Attributes:
        model: its name.
        vendor: of the hosts; empty if not all of them say.
        added: features beside the model's.
        removed: features of the model that a host lacks.
    """

    model: str
    vendor: str
    added: tuple[str, ...]
    removed: tuple[str, ...]

    def __str__(self) -> str:
        """As `Library.resolve`, and QEMU's -cpu, take it."""
        return ",".join((self.model, *(f"+{name}" for name in self.added), *(f"-{name}" for name in self.removed)))


def baseline(hosts: Sequence[CpuDescription], models: Library, *, migratable: bool = True) -> Baseline:
    """The best CPU that all `hosts` can give.

    Raises:
        UserError: they have different vendors, or nothing in common.
    """
    named = {host.vendor: host.name for host in reversed(hosts) if host.vendor}
    if len(named) > 1:
        told = ", ".join(f"{name} {vendor}" for vendor, name in sorted(named.items(), key=lambda item: item[1]))
        raise UserError(f"hosts of different vendors have no CPU in common ({told})")
    common = frozenset.intersection(*(host.features for host in hosts))
    if migratable:
        common -= NOT_MIGRATABLE
    if not common:
        raise UserError("the hosts' CPUs have no feature in common")
    vendor = next(iter(named), "")
    found = _decode(common, vendor, hosts, models)
    return found if all(host.vendor for host in hosts) else replace(found, vendor="")


def _decode(features: frozenset[str], vendor: str, hosts: Sequence[CpuDescription], models: Library) -> Baseline:
    """The model that says these features with the fewest changes; of equals, the last in the library.

    If all hosts are of one model, it is that one, whatever the changes.
    """
    names = {host.name.partition(",")[0] for host in hosts}
    best: tuple[tuple[int, int], Baseline] | None = None
    for model in reversed(models.models):
        if vendor and model.vendor and model.vendor != vendor:
            continue
        added, removed = features - model.features, model.features - features
        candidate = Baseline(model.name, vendor, tuple(sorted(added)), tuple(sorted(removed)))
        if names <= {model.name, *model.aliases}:
            return candidate
        cost = _cost(len(added), len(removed))
        if best is None or cost < best[0]:
            best = cost, candidate
    if best is None:
        raise UserError(f"the library has no model of vendor {vendor}")
    return best[1]


def _cost(added: int, removed: int) -> tuple[int, int]:
    """What so many changes cost, and how much of it is for features removed.

    A feature added costs 1. Of those removed every second costs more, 2 and then always one more; this is where libvirt
    stops counting, and baselines of both shall be the same.
    """
    dear = (removed + 1) // 2
    penalty = sum(range(2, 2 + dear))
    return added + removed - dear + penalty, penalty


class Verdict(enum.Enum):
    """How a host's CPU is to one that is wanted."""

    INCOMPATIBLE = "incompatible"
    """It cannot give it."""
    IDENTICAL = "identical"
    """It has just that."""
    SUPERSET = "superset"
    """It has more."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What `compare` found.

    Attributes:
        missing: features that are wanted and the host lacks.
        extra: features that the host has besides.
        vendors: the vendors that are wanted and found, if it is their difference that matters.
    """

    verdict: Verdict
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    vendors: tuple[str, str] | None


def compare(wanted: CpuDescription, host: CpuDescription) -> Comparison:
    """Whether a guest with the CPU `wanted` can run on `host`, and what it would lack; an unsaid vendor is any."""
    missing, extra = wanted.features - host.features, host.features - wanted.features
    vendors = (wanted.vendor, host.vendor) if wanted.vendor and wanted.vendor != host.vendor else None
    given = Verdict.SUPERSET if extra else Verdict.IDENTICAL
    verdict = Verdict.INCOMPATIBLE if missing or vendors else given
    return Comparison(verdict, tuple(sorted(missing)), tuple(sorted(extra)), vendors)
