"""The raw pipe: the least it takes to move memory under AES-GCM between two processes over loopback TCP.

::

    sender:    private memory ── encrypt_into ──► slot ── sendall ──► socket
    receiver:  socket ── recv_into ──► slot ── copy ──► buffer ── decrypt_into ──► private memory

Records, memory (memfds), socket buffers and scheduling are those of a migration; so is the copy, since nobody may
change a record while it is opened. All memory is touched before. There is no handler, no VMM, no stream and no
handover: what a migration takes beyond this is what those cost.

``python -m sealift.cli.bench.pipe`` with `receive SIZE` or `send SIZE PORT` is one end; a line on standard input
starts the sender.
"""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO, Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sealift.address import PAGE_SIZE
from sealift.errors import InternalError
from sealift.silicon.memory.plane import Plane
from sealift.silicon.process.ring import SLOT_SIZE, SLOTS
from sealift.vmm.migration.streamio import bulk_work
from sealift.vmm.migration.transport import tune
from sealift.wire.record import RecordHeader, RecordKind, pages_fitting

RECORD_PAGES: Final = pages_fitting(SLOT_SIZE)
"""As many as a migration puts into one record of the ring."""

_KEY: Final = bytes(range(32))
_NONCE: Final = struct.Struct("<IQ")
_LOCALHOST: Final = "127.0.0.1"
_PATIENCE_S: Final = 300.0
_TEMPLATE: Final = RecordHeader(RecordKind.PAGES, 1, 0, 1, 0, bytes(16), RECORD_PAGES, RECORD_PAGES * PAGE_SIZE)


def whole_records(size: int) -> int:
    """How many full records `size` bytes of memory make, rounded up."""
    return -(-size // (RECORD_PAGES * PAGE_SIZE))


@dataclass(frozen=True, slots=True)
class Piped:
    """One transfer, from the word to begin until the last record lies decrypted in the receiver's memory.

    Attributes:
        size: bytes of memory.
        seconds: it took.
        sender_cpu_s: processor time of the sender meanwhile.
        receiver_cpu_s: the same of the receiver.
    """

    size: int
    seconds: float
    sender_cpu_s: float
    receiver_cpu_s: float

    @property
    def bytes_per_s(self) -> float:
        """Bytes moved a second."""
        return self.size / self.seconds

    @property
    def cpu_s_per_byte(self) -> float:
        """Processor time of both ends for each byte."""
        return (self.sender_cpu_s + self.receiver_cpu_s) / self.size


def raw_pipe(size: int) -> Piped:
    """Move at least `size` bytes of random memory once."""
    records = whole_records(size)
    with ExitStack() as ending:
        receiver = _start(ending, "receive", str(records))
        port = _line(receiver.stdout)
        sender = _start(ending, "send", str(records), port)
        for end in (receiver, sender):
            if _line(end.stdout) != "ready":
                raise InternalError("an end of the raw pipe did not get ready")
        begun = time.monotonic()
        sent, _ = sender.communicate("go\n", _PATIENCE_S)
        received, _ = receiver.communicate(None, _PATIENCE_S)
        ended, cpu_s = map(float, received.split())
        return Piped(records * RECORD_PAGES * PAGE_SIZE, ended - begun, float(sent), cpu_s)


def _start(ending: ExitStack, *arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "sealift.cli.bench.pipe", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    ending.callback(_end, process)
    return process


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def _line(stream: IO[str] | None) -> str:
    if stream is None:
        raise InternalError("an end of the raw pipe has no output")
    return stream.readline().strip()


# --- the two ends --------------------------------------------------------------------------------------------------


class _Slots:
    """Record slots in a memfd, as the rings are."""

    def __init__(self) -> None:
        self._plane = Plane("bench-ring", SLOTS * SLOT_SIZE)
        self._size = _TEMPLATE.size

    def __getitem__(self, number: int) -> memoryview:
        start = number % SLOTS * SLOT_SIZE
        return self._plane.data[start : start + self._size]


def _memory(records: int) -> Plane:
    """Memory for so many records, every page of it touched."""
    plane = Plane("bench-private", records * RECORD_PAGES * PAGE_SIZE)
    plane.words[:, 0] = 1
    return plane


def fill(plane: Plane) -> None:
    """Random content; it does not matter where it is from."""
    import numpy as np

    generator = np.random.default_rng()
    for first in range(0, plane.pages, RECORD_PAGES):
        window = plane.window(first, min(RECORD_PAGES, plane.pages - first))
        window[:] = generator.bytes(len(window))


def _window(plane: Plane, record: int) -> memoryview:
    return plane.window(record * RECORD_PAGES, RECORD_PAGES)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _send(records: int, port: int) -> None:
    plane, slots, cipher = _memory(records), _Slots(), AESGCM(_KEY)
    fill(plane)
    associated = _TEMPLATE.encode() + bytes(_TEMPLATE.body - len(_TEMPLATE.encode()))
    with socket.create_connection((_LOCALHOST, port)) as sock, bulk_work():
        tune(sock)
        _say("ready")
        sys.stdin.readline()
        begun = time.process_time()
        for record in range(records):
            slot = slots[record]
            slot[: _TEMPLATE.body] = associated
            cipher.encrypt_into(_NONCE.pack(0, record), _window(plane, record), associated, slot[_TEMPLATE.body :])
            sock.sendall(slot)
    _say(repr(time.process_time() - begun))


def _receive(records: int) -> None:
    plane, slots, cipher = _memory(records), _Slots(), AESGCM(_KEY)
    buffer = memoryview(bytearray(_TEMPLATE.size))
    with socket.create_server((_LOCALHOST, 0)) as listening:
        _say(str(listening.getsockname()[1]))
        sock, _ = listening.accept()
    with sock, bulk_work():
        tune(sock)
        _say("ready")
        begun = time.process_time()
        for record in range(records):
            slot = slots[record]
            if sock.recv_into(slot, 0, socket.MSG_WAITALL) != len(slot):
                raise InternalError("the sender of the raw pipe ended early")
            buffer[:] = slot
            associated, sealed = buffer[: _TEMPLATE.body], buffer[_TEMPLATE.body :]
            cipher.decrypt_into(_NONCE.pack(0, record), sealed, associated, _window(plane, record))
        ended = time.monotonic()
    _say(f"{ended!r} {time.process_time() - begun!r}")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["send", records, port]:
            _send(int(records), int(port))
        case ["receive", records]:
            _receive(int(records))
