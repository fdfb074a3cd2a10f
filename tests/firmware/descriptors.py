"""Firmware descriptors as tests write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def flash(
    path: str = "/fw/code.fd", *, mode: str | None = None, template: bool = True, form: str = "raw"
) -> dict[str, Any]:
    """A mapping for flash; with a template of variables as a split image has it."""
    mapping: dict[str, Any] = {"device": "flash", "executable": {"filename": path, "format": form}}
    if mode:
        mapping["mode"] = mode
    if template:
        mapping["nvram-template"] = {"filename": f"{path}.vars", "format": form}
    return mapping


def descriptor(**members: Any) -> dict[str, Any]:
    """A good one, with other members where they are given."""
    return {
        "description": "an image",
        "interface-types": ["uefi"],
        "mapping": flash(),
        "targets": [{"architecture": "x86_64", "machines": ["pc-i440fx-*", "pc-q35-*"]}],
        "features": ["amd-sev"],
        "tags": [],
    } | {name.replace("_", "-"): value for name, value in members.items()}


def write(directory: Path, name: str, **members: Any) -> Path:
    """The same as a file."""
    directory.mkdir(exist_ok=True)
    (path := directory / name).write_text(json.dumps(descriptor(**members)))
    return path
