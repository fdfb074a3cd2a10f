"""What a guest that came to a bad end leaves behind for its user: its last console lines and its registers."""

from __future__ import annotations

from typing import Final

from sealift.vmm.console import Console
from sealift.wire.platform import Fault

_LINES: Final = 30
"""A screenful: with what Linux prints when it panics, registers included."""

_PANIC: Final = "Kernel panic - not syncing"
_PANIC_END: Final = b"end Kernel panic - not syncing"
"""The last words of a Linux that will not reboot after its panic (one without ``panic=`` on its command line)."""


class PanicEar:
    """Listens to what one device prints for the end of a panic, piece by piece."""

    def __init__(self) -> None:
        self._before = b""

    def hear(self, data: bytes) -> bool:
        """Whether this completes it."""
        heard = self._before + data
        self._before = heard[-len(_PANIC_END) + 1 :]
        return _PANIC_END in heard


def has_panicked(console: Console) -> bool:
    """Whether a panic is among the last lines."""
    return any(_PANIC in line for line in console.tail(_LINES))


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
