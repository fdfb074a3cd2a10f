"""``python -m sealift.silicon.process FD IDENTITY MANUFACTURER ENGINE``: started by a VMM, serves it, ends with it.

FD is the control socket, IDENTITY the directory of this host's persistent identity, MANUFACTURER the directory of
the keys that endorse chips (both made on first use), ENGINE what is to run guests (`sealift.silicon.engines.choice`).
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import sys
import threading
import traceback
from pathlib import Path
from types import TracebackType

from sealift.errors import LostError, SealiftError
from sealift.silicon.engines.choice import choose
from sealift.silicon.engines.kvm.vcpu import catch_kicks
from sealift.silicon.process.server import Server
from sealift.silicon.processor.firmware import INIT_ES, SecureProcessor
from sealift.silicon.processor.identity import PlatformIdentity
from sealift.silicon.processor.profile import NUMBERED_CONTEXTS
from sealift.wire.channel import Channel
from sealift.wire.failure import to_failed

_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38
_INTERNAL_ERROR = 70  # sysexits.h: EX_SOFTWARE


def harden() -> None:
    """Keep the guest's plaintext in here: no core dump, no ptrace, no /proc/PID/mem, no new privileges."""
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in ((_PR_SET_DUMPABLE, 0), (_PR_SET_NO_NEW_PRIVS, 1)):
        if libc.prctl(option, value, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> None:
    """Serve until the VMM disconnects, then end at once with all threads and the guest."""
    harden()
    # The terminal's signals are for the VMM; this process ends when its connection does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.excepthook = lambda hook: _end_on_bug(hook.exc_type, hook.exc_value, hook.exc_traceback)
    sys.excepthook = _end_on_bug
    catch_kicks()
    fd, identity, manufacturer, engine = sys.argv[1:]
    sock = socket.socket(fileno=int(fd))
    try:
        processor = SecureProcessor(PlatformIdentity(Path(identity), Path(manufacturer)), NUMBERED_CONTEXTS)
        processor.init(INIT_ES)
        chosen = choose(engine)
    except SealiftError as error:
        _refuse(sock, error)
    else:
        Server(sock, processor, chosen).serve()
    # vCPU threads may be deep in the guest; nothing of it is worth waiting for.
    os._exit(0)


def _refuse(sock: socket.socket, error: SealiftError) -> None:
    """Answer the first request with why there is no platform."""
    channel: Channel[bytes, object] = Channel(sock, object)  # type: ignore[type-var]  # nothing is parsed
    try:
        channel.receive()
        channel.send(to_failed(error))
    except (LostError, SealiftError):
        return


def _end_on_bug(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    """A thread died of a bug: the guest cannot be trusted to be whole any more, so it ends, and says why."""
    traceback.print_exception(kind, error, trace)
    os._exit(_INTERNAL_ERROR)


if __name__ == "__main__":
    main()
