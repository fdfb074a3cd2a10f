"""The human monitor's commands that show memory and what leads to it, in QEMU's format (monitor/hmp-cmds-target.c)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np

from sealift.address import PAGE_SIZE
from sealift.errors import UserError
from sealift.sev.policy import Policy
from sealift.vmm.debug.cpu import GENERAL, CpuRegisters, read_cpu
from sealift.vmm.debug.memory import NotRamError, debug_memory
from sealift.vmm.debug.virtual import VirtualMemory
from sealift.vmm.debug.walker import Bit, Mapping, NotMappedError, PagingMode, Walker
from sealift.vmm.qmp.commands.sev import query_sev
from sealift.vmm.qmp.human import Call, HumanCommand
from sealift.vmm.qmp.table import NoArguments

_FORMAT: Final = re.compile(r"(\d*)(.*)", re.DOTALL)
_SIZES: Final = {"b": 1, "h": 2, "w": 4, "g": 8}
_SHOWN_AS: Final = "oxduc"

_COUNT_LIMIT: Final = 1 << 16
"""Items that one command shows: half a megabyte of memory, and less than a client may be behind."""

_LINES_LIMIT: Final = 4096
"""Pages that `info tlb` lists; a client that is too far behind is dropped."""

_SUM_LIMIT: Final = 16 << 20
"""Bytes of a checksum, which goes byte by byte."""

_TERM: Final = re.compile(r"\s*([+-])?\s*(\$[a-z0-9]+|0[xX][0-9a-fA-F]+|\d+)")
_ADDRESSES: Final = 1 << 64


def _item(value: int, size: int, shown_as: str) -> str:
    """One value as QEMU shows it: right-aligned as wide as the widest of its size."""
    bits = 8 * size
    match shown_as:
        case "o":
            digits = f"0{value:o}" if value else "0"
            return digits.rjust(-(-bits // 3))
        case "x":
            return f"0x{value:0{bits // 4}x}"
        case "c":
            return _character(value & 0xFF)
        case _:
            if shown_as == "d" and size == _SIZES["g"] and value >> (bits - 1):
                value -= 1 << bits
            return str(value).rjust(-(-bits * 10 // 33))


def _character(value: int) -> str:
    escapes = {ord("'"): r"\'", ord("\\"): r"\\", ord("\n"): r"\n", ord("\r"): r"\r"}
    if value in escapes:
        return f"'{escapes[value]}'"
    return f"'{chr(value)}'" if 32 <= value < 127 else rf"'\x{value:02x}'"


def _format(call: Call) -> tuple[int, str, int]:
    """Count, format and size of ``/fmt``; what it leaves out is as this user had it last."""
    match = _FORMAT.fullmatch(call.words.get("/fmt", ""))
    digits, letters = ("", "") if match is None else match.groups()
    count, view = int(digits or 1), call.view
    shown_as, size = view.shown_as, view.size
    for letter in letters:
        if letter in _SIZES:
            size = _SIZES[letter]
        elif letter in _SHOWN_AS:
            shown_as = letter
        elif letter == "i":
            raise UserError("instructions are not disassembled here; gdb does that (gdbserver)")
        else:
            raise UserError(f"invalid char in format: '{letter}'")
    if not 0 < count <= _COUNT_LIMIT:
        raise UserError(f"a count is at least 1 and at most {_COUNT_LIMIT}")
    view.shown_as, view.size = shown_as, size
    return count, shown_as, 1 if shown_as == "c" else size


def _dump(call: Call, read: Callable[[int, int], bytes]) -> Iterator[str]:
    count, shown_as, size = _format(call)
    address, left = _value(call, call.words["addr"]), count * size
    per_line = 8 if size == 1 else 16
    while left > 0:
        length = min(left, per_line)
        try:
            data = read(address, length)
        except (NotRamError, NotMappedError):
            yield f"{address:016x}: Cannot access memory"
            return
        values = np.frombuffer(data, f"<u{size}").tolist()
        yield f"{address:016x}:" + "".join(f" {_item(value, size, shown_as)}" for value in values)
        address, left = (address + length) % _ADDRESSES, left - length


def _x(call: Call) -> Iterator[str]:
    yield from _dump(call, VirtualMemory(debug_memory(call.guest.machine), _cpu(call).paging).read)


def _xp(call: Call) -> Iterator[str]:
    yield from _dump(call, debug_memory(call.guest.machine).read)


def _print(call: Call) -> Iterator[str]:
    _, shown_as, _ = _format(call)
    value = _value(call, call.words["expr"])
    match shown_as:
        case "c":
            yield _character(value & 0xFF)
        case "x":
            yield f"0x{value:x}"
        case "o":
            yield f"0{value:o}" if value else "0"
        case "d":
            yield str(value - _ADDRESSES if value >> 63 else value)
        case _:
            yield str(value)


def _sum(call: Call) -> Iterator[str]:
    """The checksum of BSD, 16 bits: of each byte with that of all before, so no array operation does it."""
    address, size = _value(call, call.words["addr"]), _value(call, call.words["size"])
    if size > _SUM_LIMIT:
        raise UserError(f"a checksum is of at most {_SUM_LIMIT >> 20} MiB; pmemsave the memory, and use cksum")
    checksum = 0
    for byte in debug_memory(call.guest.machine).read(address, size):
        checksum = ((checksum >> 1 | checksum << 15) + byte) & 0xFFFF
    yield f"{checksum:05d}"


# --- addresses ---------------------------------------------------------------------------------------------------


def _value(call: Call, text: str) -> int:
    """Numbers and registers, added and subtracted: ``$rsp+0x10``."""
    value = at = 0
    while at < len(text):
        match = _TERM.match(text, at)
        if match is None or (at and match[1] is None):
            raise UserError(f"{text!r} is no address: write numbers and registers such as $rip, with + and - between")
        term = _register(call, match[2][1:]) if match[2].startswith("$") else _number(match[2])
        value += -term if match[1] == "-" else term
        at = match.end()
    return value % _ADDRESSES


def _number(text: str) -> int:
    return int(text, 16) if text[:2].lower() == "0x" else int(text)


def _register(call: Call, name: str) -> int:
    registers = _cpu(call).registers
    values = dict(zip(GENERAL, registers.general, strict=True))
    values |= {each: getattr(registers, each) for each in ("rip", "rflags", "cr0", "cr2", "cr3", "cr4", "efer")}
    if (found := values.get("rip" if name == "pc" else name)) is None:
        raise UserError("unknown register")
    return found


def _cpu(call: Call) -> CpuRegisters:
    with call.guest.machine.stilled():
        return read_cpu(call.guest.machine, call.cpu)


def _walker(call: Call) -> Walker:
    return Walker(debug_memory(call.guest.machine), _cpu(call).paging)


def _gva2gpa(call: Call) -> Iterator[str]:
    try:
        yield f"gpa: {_walker(call).translate(_value(call, call.words['addr'])).gpa:#x}"
    except NotMappedError:
        yield "Unmapped"


def _gpa2hva(call: Call) -> Iterator[str]:
    gpa = _value(call, call.words["addr"])
    raise UserError(
        f"GPA {gpa:#x} has no address in this process: private memory is the platform's alone; x and xp read it as far "
        "as the policy allows"
    )


# --- info --------------------------------------------------------------------------------------------------------


def _info_mem(call: Call) -> Iterator[str]:
    """Runs of addresses with the same rights."""
    walker = _walker(call)
    if walker.paging.mode is PagingMode.OFF:
        yield "PG disabled"
        return
    begin = end = 0
    rights = ""
    for mapping in walker.mappings():
        found = "".join(
            (
                "u" if mapping.attributes & Bit.USER else "-",
                "r",
                "w" if mapping.attributes & Bit.WRITABLE else "-",
            )
        )
        if rights and (mapping.address, found) == (end, rights):
            end += mapping.length
            continue
        if rights:
            yield _run(begin, end, rights)
        begin, end, rights = mapping.address, mapping.address + mapping.length, found
    if rights:
        yield _run(begin, end, rights)


def _run(begin: int, end: int, rights: str) -> str:
    return f"{begin:016x}-{end % _ADDRESSES:016x} {end - begin:016x} {rights}"


_FLAGS: Final = (
    (Bit.NO_EXECUTE, "X"),
    (Bit.GLOBAL, "G"),
    (Bit.LARGE, "P"),
    (Bit.DIRTY, "D"),
    (Bit.ACCESSED, "A"),
    (Bit.CACHE_DISABLED, "C"),
    (Bit.WRITE_THROUGH, "T"),
    (Bit.USER, "U"),
    (Bit.WRITABLE, "W"),
)


def _info_tlb(call: Call) -> Iterator[str]:
    """A line a page as QEMU's, with the C-bit behind its flags; of what all levels permit, not of the last alone."""
    walker = _walker(call)
    if walker.paging.mode is PagingMode.OFF:
        yield "PG disabled"
        return
    shown = 0
    for mapping in walker.mappings():
        flags = _flags(mapping, confidential=walker.paging.cbit is not None)
        for done in range(0, mapping.length, mapping.page_size):
            if shown == _LINES_LIMIT:
                yield f"and more; the first {_LINES_LIMIT} pages are shown (info mem is shorter)"
                return
            yield f"{mapping.address + done:016x}: {mapping.gpa + done:016x} {flags}"
            shown += 1


def _flags(mapping: Mapping, *, confidential: bool) -> str:
    bits = mapping.attributes | (Bit.LARGE if mapping.page_size > PAGE_SIZE else Bit(0))
    shown = "".join(letter if bits & bit else "-" for bit, letter in _FLAGS)
    return shown + (("E" if mapping.encrypted else "-") if confidential else "")


def _info_ramblock(call: Call) -> Iterator[str]:
    """Without host addresses, of which private memory has none here."""
    yield f"{'Block Name':>24s} {'PSize':>8s}  {'Offset':>18s} {'Used':>18s} {'Total':>18s}"
    for block, offset in call.guest.machine.layout.ranges():
        yield f"{block.name:>24s} {'4 KiB':>8s}  0x{offset:016x} 0x{block.size:016x} 0x{block.size:016x}"


def _info_mtree(call: Call) -> Iterator[str]:
    yield "address-space: memory"
    for block, _ in call.guest.machine.layout.ranges():
        yield f"  {block.gpa:016x}-{block.gpa + block.size - 1:016x} (prio 0, ram): {block.name}"


def _info_sev(call: Call) -> Iterator[str]:
    info = query_sev(call.guest, NoArguments())
    if not info.enabled:
        yield "SEV is not enabled"
        return
    yield f"handle: {info.handle}"
    yield f"state: {info.state.value}"
    yield f"build: {info.build_id}"
    yield f"api version: {info.api_major}.{info.api_minor}"
    yield f"debug: {'off' if info.policy & Policy.NODBG else 'on'}"
    yield f"key-sharing: {'off' if info.policy & Policy.NOKS else 'on'}"


def _info_encryption(call: Call) -> Iterator[str]:
    machine = call.guest.machine
    if machine.spec.plain:
        yield "memory: not encrypted"
        return
    shared = len(machine.shared_pages_now())
    yield f"memory: encrypted, C-bit {machine.platform.cpu.cbit}"
    yield f"registers: {'encrypted' if machine.spec.es else 'not encrypted'}"
    yield f"private: {machine.layout.pages - shared} pages"
    yield f"shared: {shared} pages"
    forbidden = machine.platform.status().policy & Policy.NODBG
    yield f"debugging: {'forbidden' if forbidden else 'allowed'} by the guest's policy"


INFO: Final = (
    HumanCommand(("mem",), (), "show the active virtual memory mappings", _info_mem),
    HumanCommand(("tlb",), (), "show virtual to physical memory mappings", _info_tlb),
    HumanCommand(("mtree",), (), "show memory tree", _info_mtree),
    HumanCommand(("ramblock",), (), "show the guest's RAM blocks", _info_ramblock),
    HumanCommand(("sev",), (), "show SEV information", _info_sev),
    HumanCommand(("encryption",), (), "show what of the guest is encrypted, and who may look at it", _info_encryption),
)

ACTIONS: Final = (
    HumanCommand(("x",), ("[/fmt]", "addr"), "virtual memory dump starting at 'addr'", _x),
    HumanCommand(("xp",), ("[/fmt]", "addr"), "physical memory dump starting at 'addr'", _xp),
    HumanCommand(("print", "p"), ("[/fmt]", "expr"), "print expression value (use $reg for a CPU register)", _print),
    HumanCommand(("sum",), ("addr", "size"), "compute the checksum of a memory region", _sum),
    HumanCommand(
        ("gva2gpa",), ("addr",), "print the guest physical address corresponding to a guest virtual address", _gva2gpa
    ),
    HumanCommand(("gpa2hva",), ("addr",), "refused: guest memory has no address that is of use here", _gpa2hva),
)
