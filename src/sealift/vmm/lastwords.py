"""What a guest that came to a bad end leaves behind for its user: its last console lines and its registers."""

from __future__ import annotations

import re
from typing import Final

from sealift.vmm.console import Console
from sealift.wire.platform import Fault

_LINES: Final = 30
"""A screenful: with what Linux prints when it panics, registers included."""

_STAMPS: Final = r"(?:\[[^\]\n]*\])* ?"
"""What the kernel may put before its words: the time, and who called."""

_PANIC: Final = re.compile(f"{_STAMPS}Kernel panic - not syncing")
_RESTART: Final = re.compile(f"{_STAMPS}reboot: ")
"""An orderly end. After a panic the kernel restarts without these words."""

_PANIC_END: Final = re.compile(rf"{_STAMPS}---\[ end Kernel panic - not syncing.*\]---\r?".encode())
"""The last line of a Linux that will not reboot after its panic (one without ``panic=`` on its command line)."""

_LINE_LIMIT: Final = 2048
"""Bytes. The kernel's lines are shorter; of a longer one, nothing is kept."""


class PanicEar:
    """Listens to what one device prints, piece by piece, for the line that ends a panic."""

    def __init__(self) -> None:
        self._line = b""
        self._overlong = False

    def hear(self, data: bytes) -> bool:
        """Whether this completes it."""
        *ended, rest = data.split(b"\n")
        if not ended:
            self._begin(self._line + rest, overlong=self._overlong)
            return False
        first = b"" if self._overlong else self._line + ended[0]
        self._begin(rest, overlong=False)
        return any(_PANIC_END.fullmatch(line) for line in (first, *ended[1:]))

    def _begin(self, line: bytes, *, overlong: bool) -> None:
        self._overlong = overlong or len(line) > _LINE_LIMIT
        self._line = b"" if self._overlong else line


def has_panicked(console: Console) -> bool:
    """Whether, by its last lines, the guest's kernel panicked and did not restart in an orderly way since."""
    panicked = False
    for line in console.tail(_LINES):
        if _PANIC.match(line):
            panicked = True
        elif _RESTART.match(line):
            panicked = False
    return panicked


def panic_report(console: Console) -> str:
    """Of a guest that panicked."""
    return f"its kernel panicked\n{_last_lines(console)}"


def fault_report(console: Console, vcpu: int, fault: Fault, registers: list[str]) -> str:
    """Of a guest one of whose vCPUs cannot go on; `registers` as they are to be shown."""
    return "\n".join(
        (
            f"vCPU {vcpu} stopped: {fault.reason}",
            "registers:",
            _quoted(registers),
            "last console lines:",
            _last_lines(console),
        )
    )


def _last_lines(console: Console) -> str:
    return _quoted(console.tail(_LINES))


def _quoted(lines: list[str]) -> str:
    return "\n".join(f"  | {line}" for line in lines)
