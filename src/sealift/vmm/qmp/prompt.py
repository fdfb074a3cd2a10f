"""What the human monitor's lines look like on its socket; its clients know no more of a VMM."""

from __future__ import annotations

from typing import Final

END_OF_LINE: Final = "\r\n"

PROMPT: Final = "(qemu) "
"""What scripts that were written for QEMU wait for."""
