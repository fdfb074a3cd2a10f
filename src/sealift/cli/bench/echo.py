"""Round trips between two processes with nothing behind them: over a bare socket, and over a vCPU's link.

::

    bench ── a few bytes ──► echo ── a few bytes ──► bench        the least that two processes can do
    bench ── Run ──────────► echo ── PortOut ──────► bench        a vCPU's exchange, without a guest

``python -m sealift.cli.bench.echo`` with `socket FD` or `link FD AREA` is the echo; it ends with its other end.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Final

from sealift.errors import LostError
from sealift.wire.exits import LinkParts, exit_link, vmm_end
from sealift.wire.platform import PortOut, Run

WARM_UP: Final = 2000
"""Round trips before the clock starts: both processes have run, and the scheduler has made up its mind."""

_PING: Final = b"ping"
_READ_SIZE: Final = 16
_EXIT: Final = PortOut(0x80, 1, 0x5A)


def socket_round_trip(count: int) -> float:
    """Seconds of one round trip over a stream socket: blocking, both sides in Python."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs, _echo(["socket"], [theirs.fileno()]):

        def trips(number: int) -> None:
            for _ in range(number):
                ours.send(_PING)
                ours.recv(_READ_SIZE)

        return timed(trips, count)


def link_round_trip(count: int) -> float:
    """Seconds of one exchange of Run and PortOut between two processes; this one is the platform."""
    ours, parts = exit_link()
    with closing(ours), closing(parts), _echo(["link"], [parts.sock.fileno(), parts.area]):

        def trips(number: int) -> None:
            for _ in range(number):
                ours.receive()
                ours.send(_EXIT)

        return timed(trips, count)


def timed(trips: Callable[[int], None], count: int) -> float:
    """Seconds of one of `count` trips, after some that do not count."""
    trips(WARM_UP)
    begun = time.perf_counter()
    trips(count)
    return (time.perf_counter() - begun) / count


@contextmanager
def _echo(arguments: Sequence[str], descriptors: Sequence[int]) -> Iterator[None]:
    command = [sys.executable, "-m", "sealift.cli.bench.echo", *arguments, *map(str, descriptors)]
    with subprocess.Popen(command, pass_fds=descriptors) as process:
        try:
            yield
        finally:
            process.kill()


# --- the echo ------------------------------------------------------------------------------------------------------


def _echo_socket(fd: int) -> None:
    with socket.socket(fileno=fd) as sock:
        while data := sock.recv(_READ_SIZE):
            sock.send(data)


def _echo_link(fd: int, area: int) -> None:
    with closing(vmm_end(LinkParts(socket.socket(fileno=fd), area))) as link, suppress(LostError):
        while True:
            link.send(Run())
            link.receive()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["socket", fd]:
            _echo_socket(int(fd))
        case ["link", fd, area]:
            _echo_link(int(fd), int(area))
