"""Where HLT, RDMSR and WRMSR may stand in a vCPU's code: Unicorn is made to stop in front of them.

Unicorn ends emulation at HLT without a word, and that cannot be told from a slice whose count was used up there; of
MSRs it knows a few and takes the others for zeros. So it never executes any of these: wherever their bytes stand in a
page of code is an exit address, at which Unicorn stops if an instruction begins there. Bytes that are part of another
instruction cost nothing. An RDMSR or WRMSR that lies across two pages, or has a prefix, is not found, and Unicorn's.
"""

from __future__ import annotations

import numpy as np
from unicorn import Uc

from sealift.address import PAGE_SIZE

HLT = b"\xf4"
RDMSR = b"\x0f\x32"
WRMSR = b"\x0f\x30"


class Stops:
    """The exit addresses of one emulator, by page of linear address space."""

    def __init__(self, uc: Uc) -> None:
        self._uc = uc
        self._places: dict[int, frozenset[int]] = {}

    def scan(self, page: int, code: memoryview) -> None:
        """The page at linear address `page` holds `code`, which is about to be executed."""
        data = np.frombuffer(code, np.uint8)
        found = data == HLT[0]
        found[:-1] |= (data[:-1] == RDMSR[0]) & ((data[1:] == RDMSR[1]) | (data[1:] == WRMSR[1]))
        places = frozenset(int(at) + page for at in np.flatnonzero(found))
        if places != self._places.get(page, frozenset()):
            self._places[page] = places
            self._uc.ctl_set_exits(sorted(set().union(*self._places.values())))

    def forget(self) -> None:
        """Code has changed: every page is scanned anew before it is executed again."""
        self._places.clear()
        self._uc.ctl_set_exits([])

    def __contains__(self, address: int) -> bool:
        return address in self._places.get(address & -PAGE_SIZE, ())
