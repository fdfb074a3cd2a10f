"""``python -m sealift.cli.tethered PARENT ARGUMENTS``: the ``sealift`` command, killed when its parent dies.

For commands that run guests in child processes (``demo``, ``bench``): however they end, no guest is left behind.
``PARENT -- COMMAND`` does the same for another program.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def main() -> None:
    """Tie this process to its parent, then be ``sealift`` or the other program."""
    parent = int(sys.argv.pop(1))
    # SIGKILL reaches a process even while it is stopped; a VMM's platform ends with it.
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent:
        return  # it died before we asked
    if sys.argv[1:2] == ["--"]:
        os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606  # a list of arguments is what is wanted
    from sealift.cli.main import main as sealift

    sealift()


if __name__ == "__main__":
    main()
