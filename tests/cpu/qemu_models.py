"""What the installed QEMU says of its CPU models; ``python -m cpu.qemu_models`` writes it to the package's data file.

Run it in ``tests/``. One QEMU answers everything, without a machine, and whatever its accelerator is: for a model that
is asked for as type *static*, QEMU answers what the model has by definition.
"""

from __future__ import annotations

import json
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import IO, Any, Final

import msgspec

from sealift.cpu import library
from sealift.cpu.library import DataFile, Model, Provenance

PROGRAM: Final = "qemu-system-x86_64"
NO_MODELS: Final = {"max", "host", "base"}
"""What depends on the host, and what has nothing."""
NO_FEATURES: Final = {"hypervisor"}
"""QEMU sets it in every model."""
SIGNATURE: Final = ("vendor", "family", "model", "stepping")


class Qmp:
    """One QEMU's answers, each to its question."""

    def __init__(self, requests: IO[str], replies: IO[str]) -> None:
        self._requests, self._replies = requests, replies
        self._replies.readline()  # its greeting
        self.ask("qmp_capabilities")

    def ask(self, command: str, **arguments: object) -> Any:
        """What QEMU returns."""
        self._requests.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._requests.flush()
        while "event" in (reply := json.loads(self._replies.readline())):
            pass
        return reply["return"]


def ask(program: str) -> DataFile:
    """All of it, from this QEMU."""
    command = [program, "-machine", "none", "-nodefaults", "-display", "none", "-S", "-accel", "tcg", "-qmp", "stdio"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        qmp = Qmp(process.stdin, process.stdout)
        version = qmp.ask("query-version")
        definitions = qmp.ask("query-cpu-definitions")
        aliases = defaultdict(list)
        for definition in definitions:
            aliases[definition.get("alias-of")].append(definition["name"])
        names = [name for name in sorted(aliases[None]) if name not in NO_MODELS]
        models = [_model(qmp, name, aliases[name]) for name in names]
        qmp.ask("quit")
        process.stdout.read()
    numbers = version["qemu"]
    return DataFile(
        Provenance(
            ".".join(str(numbers[part]) for part in ("major", "minor", "micro")),
            version["package"],
            "cd tests && python -m cpu.qemu_models",
            ("query-version", "query-cpu-definitions", "query-cpu-model-expansion type=static"),
        ),
        tuple(models),
    )


def _model(qmp: Qmp, name: str, aliases: list[str]) -> Model:
    props = qmp.ask("query-cpu-model-expansion", type="static", model={"name": name})["model"]["props"]
    features = frozenset(prop for prop, value in props.items() if value is True) - NO_FEATURES
    return Model(name, features, **{key: props[key] for key in SIGNATURE}, aliases=tuple(sorted(aliases)))


def encode(data: DataFile) -> bytes:
    """For the file: features in alphabetical order, a line a model."""
    models = [
        json.dumps({**msgspec.to_builtins(model), "features": sorted(model.features)}, sort_keys=True)
        for model in data.models
    ]
    lines = ",\n".join(models)
    provenance = json.dumps(msgspec.to_builtins(data.provenance))
    return f'{{"provenance": {provenance},\n"models": [\n{lines}\n]}}\n'.encode()


if __name__ == "__main__":
    Path(library.__file__).with_name("models.json").write_bytes(encode(ask(PROGRAM)))
