"""Places are read whole: another process's memory, its memfds, files; and reading changes nothing."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sealift.cli.demo.needles import Needle, search
from sealift.cli.demo.places import RING_OUT, SHARED_PLANE, AddressSpace, Memfd, RecordedFile
from sealift.cli.demo.relay import RecordingRelay
from sealift.cli.demo.secrecy import Hunt, Place, _search
from sealift.errors import InternalError

HEAP = Needle("heap", b"what lies in the heap" + bytes([1, 2, 3]))
SHARED = Needle("shared", b"what lies in the shared plane")
HOLES = 64 << 20

HOLDER = f"""
import mmap, os, sys
from sealift.silicon.memory.plane import Plane, seal_against_writers
shared = Plane({SHARED_PLANE!r}, {HOLES})
shared.data[12345:{12345 + len(SHARED.data)}] = bytes.fromhex({SHARED.data.hex()!r})
ring = Plane({RING_OUT!r}, 1 << 20)
seal_against_writers(ring.fd)
heap = bytearray(bytes.fromhex({HEAP.data.hex()!r}))
reserved = mmap.mmap(-1, 8 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)  # MAP_NORESERVE
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def holder() -> Iterator[int]:
    """A process with needles in its heap and in a sparse memfd, and with gigabytes it never touched."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process.pid
        process.communicate()


def memfd_blocks(pid: int, name: str) -> int:
    """Memory that a memfd takes, in blocks of 512 bytes."""
    return Memfd(pid, name).path.stat().st_blocks


def test_what_another_process_has_in_its_heap_is_found(holder: int) -> None:
    assert [found.needle for found in search(AddressSpace(holder).pieces(), (HEAP,))] == [HEAP]


def test_shared_memfds_are_places_of_their_own_and_their_holes_stay_holes(holder: int) -> None:
    before = memfd_blocks(holder, SHARED_PLANE)
    assert not list(search(AddressSpace(holder).pieces(), (SHARED,)))
    (found,) = search(Memfd(holder, SHARED_PLANE).pieces(), (SHARED,))
    assert found.at == 12345
    assert sum(len(piece.data) for piece in Memfd(holder, SHARED_PLANE).pieces()) < HOLES
    assert memfd_blocks(holder, SHARED_PLANE) == before


def test_what_was_never_touched_costs_nothing(holder: int) -> None:
    assert sum(len(piece.data) for piece in AddressSpace(holder).pieces()) < 1 << 30


def test_a_memfd_that_its_holder_can_write_takes_a_marker_and_a_sealed_one_does_not(holder: int) -> None:
    assert Memfd(holder, RING_OUT).is_zero()
    with pytest.raises(PermissionError):
        Memfd(holder, RING_OUT).plant(b"marker")
    assert Memfd(holder, RING_OUT).is_zero()
    Memfd(holder, SHARED_PLANE).plant(b"a marker")
    assert list(search(Memfd(holder, SHARED_PLANE).pieces(), (Needle("marker", b"a marker"),)))


def test_a_memfd_that_is_not_there_is_said_so(holder: int) -> None:
    with pytest.raises(InternalError, match="holds 0 memfds nothing"):
        Memfd(holder, "nothing")


def test_a_search_names_leaks_and_the_places_whose_control_was_found(tmp_path: Path) -> None:
    secret = os.urandom(32).hex().encode()
    contents = {"clean": b"..marker..", "leaky": b"..marker.." + bytes.fromhex(secret.decode()), "blind": b"...."}
    places = []
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        places.append(Place(name, RecordedFile(tmp_path / name), Needle("marker", b"marker")))
    report = _search(places, Hunt(secret, "marker", bytes(16)), ["unused"])
    assert report.searched == ["clean", "leaky", "blind"]
    assert report.control_found == ["clean", "leaky"]
    assert [leak.split(":")[0] for leak in report.found] == ["leaky", "leaky"]
    assert not report.ok
    assert report.bytes_searched == sum(map(len, contents.values()))


def test_the_relay_passes_on_and_records_every_byte_of_both_directions(tmp_path: Path) -> None:
    there, back = os.urandom(3_000_000), os.urandom(700_000)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "target"))
    listening.listen(1)
    got = bytearray()

    def target() -> None:
        sock, _ = listening.accept()
        with sock:
            while data := sock.recv(1 << 16):
                got.extend(data)
            sock.sendall(back)

    thread = threading.Thread(target=target)
    thread.start()
    relay = RecordingRelay(tmp_path / "target", tmp_path)
    host, port = relay.uri.removeprefix("tcp:").split(":")
    with socket.create_connection((host, int(port))) as source:
        source.sendall(there)
        source.shutdown(socket.SHUT_WR)
        returned = b"".join(iter(lambda: source.recv(1 << 16), b""))
    thread.join()
    listening.close()
    assert relay.finished(20)
    relay.close()
    assert bytes(got) == there == relay.forward.read_bytes()
    assert returned == back == relay.back.read_bytes()


def test_a_relay_that_nobody_came_to_ends_at_once(tmp_path: Path) -> None:
    relay = RecordingRelay(tmp_path / "nobody", tmp_path)
    relay.close()
    assert relay.forward.read_bytes() == relay.back.read_bytes() == b""
