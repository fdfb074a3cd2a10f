"""This host's processor, as Linux describes it in ``/proc/cpuinfo``.

What a guest can have is less, and for an engine to say. Linux's names of flags become QEMU's; where Linux has a name of
its own for what several bits say, or none, nothing is known.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sealift.cpu.description import CpuDescription
from sealift.cpu.flags import FEATURE_WORDS
from sealift.errors import UserError

CPUINFO: Final = Path("/proc/cpuinfo")
_NAMES: Final = {name for word in FEATURE_WORDS for name in word.names if name != "-"}
_SYNONYMS: Final = {
    "sse4-1": "sse4.1",
    "sse4-2": "sse4.2",
    "cr8-legacy": "cr8legacy",
    "tsc-deadline-timer": "tsc-deadline",
    "nonstop-tsc": "invtsc",
}
"""Linux's names, with dashes, that are not QEMU's."""
_OWN: Final = {"hypervisor"}
"""That this is a guest itself."""


def processor(cpuinfo: Path = CPUINFO) -> CpuDescription:
    """The first processor listed.

    Raises:
        UserError: this is no x86, or the file cannot be read.
    """
    try:
        first = cpuinfo.read_text().partition("\n\n")[0]
    except OSError as error:
        raise UserError("the processor of this host is not known") from error
    said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
    if "flags" not in said or "vendor_id" not in said:
        raise UserError(f"{cpuinfo} tells of no x86 processor")
    names = {flag.replace("_", "-") for flag in said["flags"].split()}
    features = {_SYNONYMS.get(name, name) for name in names} & _NAMES
    numbers = (int(said.get(key, "0")) for key in ("cpu family", "model", "stepping"))
    return CpuDescription("processor", frozenset(features - _OWN), said["vendor_id"], *numbers)
