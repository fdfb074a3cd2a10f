"""QEMU's published tables of ABI levels, by the release that has them.

A row says no more than its model does, so all are computed; but for models that the QEMU who filled our library does
not know any more, or did not know yet. Those are quoted.
"""

from __future__ import annotations

from typing import Final

from sealift.cpu.levels import LEVELS, levels_of
from sealift.cpu.library import Library

_QUOTED: Final = {
    "EPYC-Genoa-v1": "v4",
    "EPYC-Milan-v2": "v3",
    "EPYC-Rome-v3": "v3",
    "EPYC-Rome-v4": "v3",
    "EPYC-v4": "v3",
    "GraniteRapids-v1": "v4",
    "SapphireRapids-v1": "v4",
    "SapphireRapids-v2": "v4",
    "Icelake-Client-v1": "v3",
    "Icelake-Client-v2": "v3",
}
"""The highest level of models that are not in the library."""

_SINCE: Final = frozenset(
    {
        "Cascadelake-Server-v5",
        "Cooperlake-v2",
        "Denverton-v3",
        "Dhyana-v2",
        "EPYC-Genoa-v1",
        "EPYC-Milan-v2",
        "EPYC-Rome-v3",
        "EPYC-Rome-v4",
        "EPYC-v4",
        "GraniteRapids-v1",
        "Icelake-Server-v5",
        "Icelake-Server-v6",
        "SapphireRapids-v1",
        "SapphireRapids-v2",
        "Skylake-Client-v4",
        "Skylake-Server-v5",
        "Snowridge-v3",
        "Snowridge-v4",
    }
)
"""Rows that the table got after it was made."""
_DROPPED: Final = frozenset({"Icelake-Client-v1", "Icelake-Client-v2"})

RELEASES: Final = {"5.2": _SINCE, "10.2": _DROPPED}
"""Releases with a table of their own, and the rows they lack."""


def rows(models: Library, release: str | None = None) -> dict[str, tuple[str, ...]]:
    """Levels by model, in alphabetical order: of the library, or as QEMU's table of `release` has them."""
    found = {model.name: levels_of(model.features) for model in models}
    if release is not None:
        names = list(LEVELS)
        quoted = {model: tuple(names[: names.index(level) + 1]) for model, level in _QUOTED.items()}
        found = {model: levels for model, levels in (quoted | found).items() if model not in RELEASES[release]}
    return dict(sorted(found.items()))
