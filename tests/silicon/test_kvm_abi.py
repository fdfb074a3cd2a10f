"""KVM's structures and numbers as Python has them are those of the kernel's headers; a C compiler is the judge.

What is checked is whatever `abi` contains: the C name of each thing follows from its name there, and what the rules
below cannot name in C does not compile, so that nothing can be added unseen.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest

import judges
from sealift.silicon.engines.kvm import abi

OURS = {"CPUID_ROOM", "MSR_LIST_ROOM"}
"""Sizes of our own buffers."""
OTHER_NUMBERS = {
    "_IOC_READ": "_IOC_READ",
    "_IOC_WRITE": "_IOC_WRITE",
    "_KVMIO": "KVMIO",
    "MSR_EXIT_REASON_ALL": "KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_FILTER",
}
"""C expressions of the numbers whose name is not just the kernel's without ``KVM_``."""

OTHER_TYPES = {
    "RunInternalError": "internal",
    "_RunUnion": "padding",  # the union is anonymous, and this is all of it
    "_MsrsHead": "msrs",
    "_MsrListHead": "msr_list",
    "_Cpuid2Head": "cpuid2",
}
"""Structures likewise; `Run…` are members of struct kvm_run."""


def _with_room(structure: str, table: str, room: int) -> str:
    return f"sizeof({structure}) + {room} * sizeof((({structure} *)0)->{table}[0])"


SIZES = {
    "Run": "offsetof(struct kvm_run, kvm_valid_regs)",
    "RunHypercall": "offsetof(struct kvm_run, hypercall.longmode) - offsetof(struct kvm_run, hypercall)",
    "Msrs": _with_room("struct kvm_msrs", "entries", 1),
    "MsrList": _with_room("struct kvm_msr_list", "indices", abi.MSR_LIST_ROOM),
    "Cpuid2": _with_room("struct kvm_cpuid2", "entries", abi.CPUID_ROOM),
}
"""Sizes of structures that end earlier than C's, or behind room for a table."""
FIELDS = {
    ("Run", "u"): "padding",
    ("Msrs", "entry"): "entries",
    ("VcpuEvents", "content"): "",  # all of it
}
"""Fields of other names than C's."""
TABLES = {("Msrs", "entry"), ("MsrList", "indices"), ("Cpuid2", "entries")}
"""Flexible array members, which have an offset in C but no size."""

Structured = type[ctypes.Structure] | type[ctypes.Union]


def contents() -> dict[str, Any]:
    """Everything that `abi` itself defines."""
    from_elsewhere = {"annotations", "Final", "ctypes"}
    return {
        name: thing for name, thing in vars(abi).items() if not name.startswith("__") and name not in from_elsewhere
    }


def structures() -> dict[str, Structured]:
    """All but the base, which has no fields."""
    kinds = (ctypes.Structure, ctypes.Union)
    found = {name: thing for name, thing in contents().items() if isinstance(thing, type) and issubclass(thing, kinds)}
    return {name: thing for name, thing in found.items() if hasattr(thing, "_fields_")}


def numbers() -> dict[str, int]:
    """All but those that the kernel does not know of."""
    return {name: thing for name, thing in contents().items() if isinstance(thing, int) and name not in OURS}


def type_in_c(name: str) -> str:
    """A C type, for sizeof and for casts."""
    words = OTHER_TYPES.get(name) or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    if name != "Run" and name.lstrip("_").startswith("Run"):
        return f"__typeof__(((struct kvm_run *)0)->{words.removeprefix('run_')})"
    return f"struct kvm_{words}"


def questions() -> Iterator[tuple[str, int, str]]:
    """What is asked: a label, what Python says, and the same in C."""
    for name, number in numbers().items():
        yield name, number, OTHER_NUMBERS.get(name, f"KVM_{name}")
    for name, structure in structures().items():
        c = type_in_c(name)
        yield f"size of {name}", ctypes.sizeof(structure), SIZES.get(name, f"sizeof({c})")
        if issubclass(structure, ctypes.Union):
            # The members of an anonymous union begin where it begins.
            for field, *_ in structure._fields_:
                in_c = f"offsetof(struct kvm_run, {field}) - offsetof(struct kvm_run, padding)"
                yield f"place of {name}.{field}", 0, in_c
            continue
        for field, *_ in structure._fields_:
            in_c = FIELDS.get((name, field), field)
            placed = getattr(structure, field)
            if not in_c:
                yield f"size of {name}.{field}", placed.size, f"sizeof({c})"
                continue
            yield f"offset of {name}.{field}", placed.offset, f"offsetof({c}, {in_c})"
            if (name, field) not in TABLES:
                yield f"size of {name}.{field}", placed.size, f"sizeof((({c} *)0)->{in_c})"


@pytest.fixture
def probe(tmp_path: Path) -> Callable[[], dict[str, int]]:
    """Asks the headers about all that is in `abi` now; the answers by label."""

    def ask() -> dict[str, int]:
        # What does not compile has a name in abi.py that the rules above cannot translate.
        return judges.header_values(tmp_path, ["linux/kvm.h"], {label: c for label, _, c in questions()})

    return ask


def test_every_size_offset_and_number_is_the_kernels(probe: Callable[[], dict[str, int]]) -> None:
    kernels = probe()
    ours = {label: value for label, value, _ in questions()}
    assert len(ours) > 400
    wrong = {label: (value, kernels[label]) for label, value in ours.items() if value != kernels[label]}
    assert wrong == {}, "ours, and the kernel's"


def test_beside_what_is_compared_there_are_only_names_of_integers_and_functions() -> None:
    compared = {*structures(), *numbers(), *OURS}
    rest = {name: thing for name, thing in contents().items() if name not in compared}
    integers = {
        name for name, thing in rest.items() if isinstance(thing, type) and issubclass(thing, ctypes._SimpleCData)
    }
    functions = {name for name, thing in rest.items() if isinstance(thing, FunctionType)}
    assert rest.keys() - integers - functions == {"_Structure"}


class _Unheard(ctypes.Structure):
    _fields_ = (("word", ctypes.c_uint32),)


@pytest.mark.parametrize("thing", [7, _Unheard], ids=["number", "structure"])
def test_what_the_kernel_has_never_heard_of_is_noticed(
    probe: Callable[[], dict[str, int]], monkeypatch: pytest.MonkeyPatch, thing: object
) -> None:
    monkeypatch.setattr(abi, "Unheard", thing, raising=False)
    with pytest.raises(AssertionError, match=r"(?i)kvm_unheard"):
        probe()
