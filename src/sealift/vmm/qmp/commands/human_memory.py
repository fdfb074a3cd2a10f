"""The human monitor's commands that write guest memory to files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sealift.errors import UserError
from sealift.vmm.debug.dump import DumpStatus, DumpWishes
from sealift.vmm.debug.save import save_physical, save_virtual
from sealift.vmm.qmp.human import Call, HumanCommand


def _dump(call: Call) -> Iterator[str]:
    words = call.words
    begin, length = (_number(words[name], name) if name in words else None for name in ("begin", "length"))
    dump = call.guest.dump(DumpWishes(Path(words["filename"]), "-c" in words, "-p" in words, begin, length))
    if "-d" in words:
        return
    ended = dump.wait()
    if ended.status is DumpStatus.FAILED:
        raise UserError(ended.error or "")
    if ended.note is not None:
        yield ended.note


def _info_dump(call: Call) -> Iterator[str]:
    info = call.guest.dump_info()
    yield f"Status: {info.status.value}"
    if info.status is DumpStatus.ACTIVE:
        yield f"Finished: {info.completed / info.total:.2%}"


def _memsave(call: Call) -> Iterator[str]:
    words = call.words
    address, size = _number(words["addr"], "addr"), _number(words["size"], "size")
    save_virtual(call.guest.machine, call.cpu, address, size, Path(words["file"]))
    yield from ()


def _pmemsave(call: Call) -> Iterator[str]:
    words = call.words
    address, size = _number(words["addr"], "addr"), _number(words["size"], "size")
    save_physical(call.guest.machine, address, size, Path(words["file"]))
    yield from ()


def _number(text: str, name: str) -> int:
    """A number as in C, but that 010 is no octal one."""
    try:
        value = int(text, 0)
    except ValueError:
        raise UserError(f"Parameter '{name}' expects a number such as 4096 or 0x1000, not '{text}'") from None
    if value < 0:
        raise UserError(f"Parameter '{name}' expects a number that is not negative")
    return value


INFO: Final = (HumanCommand(("dump",), (), "show how the last dump-guest-memory goes or went", _info_dump),)

ACTIONS: Final = (
    HumanCommand(
        ("dump-guest-memory",),
        ("[-p]", "[-d]", "[-c]", "filename", "[begin]", "[length]"),
        "dump guest memory into file 'filename': with -p by virtual addresses, with -d in the background, with -c "
        "ciphertext of private memory",
        _dump,
    ),
    HumanCommand(
        ("memsave",),
        ("addr", "size", "file"),
        "save to disk virtual memory dump starting at 'addr' of size 'size'",
        _memsave,
    ),
    HumanCommand(
        ("pmemsave",),
        ("addr", "size", "file"),
        "save to disk physical memory dump starting at 'addr' of size 'size'",
        _pmemsave,
    ),
)
