"""Where HLT may stand in a vCPU's code: Unicorn is made to stop in front of it.

Unicorn ends emulation at HLT without a word, and that cannot be told from a slice whose count was used up there. So it
never executes one: every byte of value 0xF4 in a page of code is an exit address, at which Unicorn stops if an
instruction begins there. A byte that is part of another instruction costs nothing.
"""

from __future__ import annotations

import numpy as np
from unicorn import Uc

from sealift.address import PAGE_SIZE

HLT = 0xF4


class HaltStops:
    """The exit addresses of one emulator, by page of linear address space."""

    def __init__(self, uc: Uc) -> None:
        self._uc = uc
        self._places: dict[int, frozenset[int]] = {}

    def scan(self, page: int, code: memoryview) -> None:
        """The page at linear address `page` holds `code`, which is about to be executed."""
        places = frozenset(int(at) + page for at in np.flatnonzero(np.frombuffer(code, np.uint8) == HLT))
        if places != self._places.get(page, frozenset()):
            self._places[page] = places
            self._uc.ctl_set_exits(sorted(set().union(*self._places.values())))

    def forget(self) -> None:
        """Code has changed: every page is scanned anew before it is executed again."""
        self._places.clear()
        self._uc.ctl_set_exits([])

    def __contains__(self, address: int) -> bool:
        return address in self._places.get(address & -PAGE_SIZE, ())
