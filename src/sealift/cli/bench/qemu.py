"""QEMU's own migration, to compare with: `qemu-system-x86_64` to `qemu-system-x86_64` over loopback TCP.

::

    source, paused ── plain, TLS, or TLS on two multifd channels ──► destination
      memory: random                                                   memory: touched

No guest runs in there, so memory stands still, as in our own runs. The memory of each end is a memfd like ours, which
all pairs of processes use one after the other: filled or touched once, and populated by QEMU before it listens. TLS is
what QEMU's manual sets up: x509, both ends verified, with certificates that live for one run.
"""

from __future__ import annotations

import enum
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec

from sealift.cli.bench.certificates import write_certificates
from sealift.cli.bench.pipe import fill
from sealift.cli.qmp_client import QmpClient
from sealift.cli.rundir import QMP_SOCKET
from sealift.cli.scratch import Scratch
from sealift.errors import LostError, PeerError, UserError
from sealift.silicon.memory.plane import Plane

PROGRAM: Final = "qemu-system-x86_64"
CHANNELS: Final = 2

_GRAIN: Final = 2 << 20
"""QEMU wants RAM in whole pages of the machine's; this is more than enough."""

_UNLIMITED: Final = 1 << 50
"""Bytes a second, for QEMU's max-bandwidth, whose default of 128 MiB/s is what users are told to raise."""

_START_S: Final = 60.0
_MOVE_S: Final = 900.0
_EXIT_S: Final = 10.0
_STEP_S: Final = 0.02


class QemuWay(enum.Enum):
    """How QEMU moves memory."""

    PLAIN = "plaintext"
    TLS = "TLS"
    MULTIFD_TLS = f"TLS, {CHANNELS} multifd channels"


class _InetAddress(msgspec.Struct, frozen=True):
    """A SocketAddress of type inet."""

    host: str
    port: str


class _Migration(msgspec.Struct, frozen=True, rename="kebab"):
    """What of QEMU's query-migrate is of use here; times in ms."""

    status: str = "none"
    total_time: int = 0
    setup_time: int = 0
    error_desc: str = "no reason is known"
    socket_address: tuple[_InetAddress, ...] = ()


class QemuBench:
    """Moves `size` bytes of random memory, rounded up to 2 MiB, as often as wanted.

    Args:
        scratch: where everything goes, and with which it ends.

    Attributes:
        size: bytes.

    Raises:
        UserError: QEMU is not installed.
    """

    def __init__(self, scratch: Scratch, size: int) -> None:
        program = shutil.which(PROGRAM)
        if program is None:
            raise UserError(f"{PROGRAM} is not installed; install it, or measure without --against qemu")
        self._program = program
        self._place = scratch.path / "qemu"
        self._place.mkdir()
        write_certificates(self._place)
        self._scratch = scratch
        self._pairs = 0
        self.size = -(-size // _GRAIN) * _GRAIN
        self._full, self._empty = Plane("bench-qemu-source", self.size), Plane("bench-qemu-target", self.size)
        scratch.ending.callback(self._full.close)
        scratch.ending.callback(self._empty.close)
        fill(self._full)
        self._empty.touch()

    def move(self, way: QemuWay) -> float:
        """Move the memory between two fresh processes; bytes a second of the transfer phase.

        As for our own guests: from the end of the set-up to the destination's word that everything is there.

        Raises:
            PeerError: QEMU failed; the message says why.
        """
        self._pairs += 1
        with ExitStack() as ending:
            target = ending.enter_context(
                self._running(f"target-{self._pairs}", self._empty, "server", "-incoming", "defer")
            )
            source = ending.enter_context(self._running(f"source-{self._pairs}", self._full, "client"))
            for end in (target, source):
                _set(end, way)
            target.execute("migrate-incoming", uri="tcp:127.0.0.1:0")
            (address,) = target.query("query-migrate", _Migration).socket_address
            source.execute("migrate", uri=f"tcp:{address.host}:{address.port}")
            ended = _ended(source)
        return self.size / ((ended.total_time - ended.setup_time) / 1e3)

    @contextmanager
    def _running(self, name: str, memory: Plane, endpoint: str, *options: str) -> Iterator[QmpClient]:
        """A QEMU with that memory, paused, and the connection to its QMP server; it lies as a run directory has it."""
        directory = self._place / name
        directory.mkdir()
        command = [sys.executable, "-m", "sealift.cli.tethered", str(os.getpid()), "--", self._program]
        command += ["-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg", "-S"]
        command += ["-machine", "pc,memory-backend=ram", "-m", f"{self.size >> 20}M"]
        backend = f"memory-backend-file,id=ram,size={self.size},mem-path=/proc/self/fd/{memory.fd}"
        command += ["-object", f"{backend},share=on,prealloc=on"]
        command += ["-object", f"tls-creds-x509,id=tls,dir={self._place},endpoint={endpoint},verify-peer=on"]
        command += ["-qmp", f"unix:{directory / QMP_SOCKET},server=on,wait=off", *options]
        with _process(command, memory.fd, directory / "log") as process, _connected(process, directory) as qmp:
            yield qmp


def _set(end: QmpClient, way: QemuWay) -> None:
    wanted = {"return-path": True, "multifd": way is QemuWay.MULTIFD_TLS}
    capabilities = [{"capability": name, "state": state} for name, state in wanted.items()]
    end.execute("migrate-set-capabilities", capabilities=capabilities)
    end.execute("migrate-set-parameters", max_bandwidth=_UNLIMITED, multifd_channels=CHANNELS)
    if way is not QemuWay.PLAIN:
        end.execute("migrate-set-parameters", tls_creds="tls")


def _ended(source: QmpClient) -> _Migration:
    """Wait until its migration is completed."""
    deadline = time.monotonic() + _MOVE_S
    while time.monotonic() < deadline:
        state = source.query("query-migrate", _Migration)
        match state.status:
            case "completed":
                return state
            case "failed" | "cancelled":
                raise PeerError(f"QEMU's migration has {state.status}: {state.error_desc}")
        time.sleep(_STEP_S)
    raise LostError(f"QEMU's migration has not ended after {_MOVE_S:.0f} s")


@contextmanager
def _process(command: Sequence[str], memory: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command,
            pass_fds=[memory],
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            start_new_session=True,  # Ctrl-C is for the command, which ends its processes itself
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait(_EXIT_S)


@contextmanager
def _connected(process: subprocess.Popen[bytes], directory: Path) -> Iterator[QmpClient]:
    """Its QMP server, as soon as it answers."""
    deadline = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(UserError):
            client = QmpClient(directory.parent, directory.name, _START_S)
            break
        time.sleep(_STEP_S)
    else:
        raise PeerError(f"QEMU did not start: {(directory / 'log').read_text(errors='replace').strip()}")
    with client:
        yield client
