"""The library of CPU models: QEMU's, asked over QMP when `models.json` beside this was made.

The file says which QEMU answered and how it was made; a test asks the installed QEMU again.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Final

import msgspec

from sealift.cpu.description import CpuDescription, read_description
from sealift.cpu.flags import FEATURE_WORDS
from sealift.errors import UserError

_DATA: Final = Path(__file__).with_name("models.json")


class Model(CpuDescription, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """A versioned model: its features never change.

    Attributes:
        aliases: shorter names that stand for it on machines without another preference.
    """

    aliases: tuple[str, ...] = ()


class Provenance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who said what the models have."""

    qemu: str
    package: str
    generator: str
    commands: tuple[str, ...]


class DataFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The layout of `models.json`."""

    provenance: Provenance
    models: tuple[Model, ...]


def is_file(cpu: str) -> bool:
    """Whether a CPU that a user names is in a file."""
    name = cpu.partition(",")[0]
    return "/" in name or name.endswith(".json")


class Library:
    """Models by name and alias. That it runs under a hypervisor is for the hypervisor to say, and in no model.

    Attributes:
        models: in the order given.
    """

    def __init__(self, models: Iterable[Model]) -> None:
        self.models = tuple(models)
        self._by_name = {name: model for model in self.models for name in (model.name, *model.aliases)}
        self.features = frozenset().union(*(model.features for model in self.models), _named_flags())

    def __iter__(self) -> Iterator[Model]:
        return iter(self.models)

    def find(self, name: str) -> Model:
        """A model by its name or an alias.

        Raises:
            UserError: there is none; the nearest names are offered.
        """
        found = self._by_name.get(name)
        if found is not None:
            return found
        near = difflib.get_close_matches(name, self._by_name, 3)
        hint = f"; there is {', '.join(near)}" if near else "; `sealift cpu list` has their names"
        raise UserError(f"there is no CPU model {name[:64]!r}{hint}")

    def resolve(self, text: str) -> CpuDescription:
        """The CPU that a user names: a model with changes, or a file (see `sealift.cpu.description`).

        Raises:
            UserError: no such model, feature or file; or a feature both wanted and not.
        """
        name, *changes = text.split(",")
        described = read_description(Path(name)) if is_file(name) else self.find(name)
        added, removed = self._changes(changes)
        return CpuDescription(
            text if changes else described.name,
            described.features - removed | added,
            described.vendor,
            described.family,
            described.model,
            described.stepping,
        )

    def _changes(self, changes: Iterable[str]) -> tuple[frozenset[str], frozenset[str]]:
        by_sign: dict[str, set[str]] = {"+": set(), "-": set()}
        for change in changes:
            sign, feature = change[:1], change[1:]
            if sign not in by_sign or not feature:
                raise UserError(f"{change[:64]!r} is no change to a CPU model; write +FEATURE or -FEATURE")
            if feature not in self.features:
                near = difflib.get_close_matches(feature, self.features, 3)
                hint = f"; there is {', '.join(near)}" if near else ""
                raise UserError(f"there is no CPU feature {feature[:64]!r}{hint}")
            by_sign[sign].add(feature)
        if both := by_sign["+"] & by_sign["-"]:
            raise UserError(f"{', '.join(sorted(both))} cannot be added and removed at once")
        return frozenset(by_sign["+"]), frozenset(by_sign["-"])


def _named_flags() -> frozenset[str]:
    return frozenset(name for word in FEATURE_WORDS for name in word.names if name != "-")


def read_data(data: bytes) -> DataFile:
    """Parse `models.json`."""
    return msgspec.json.decode(data, type=DataFile)


@cache
def shipped() -> DataFile:
    """The data file this package came with."""
    return read_data(_DATA.read_bytes())


@cache
def library() -> Library:
    """The models this package came with."""
    return Library(shipped().models)
