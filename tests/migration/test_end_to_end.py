"""A guest that moves is afterwards in exactly one place, with everything it had."""

from __future__ import annotations

import gc
import json
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from sealift.vmm.migration.parameters import Capability, Parameters
from sealift.vmm.migration.status import MigrationStatus
from sealift.vmm.runstate import RunState
from sealift.wire.handover import Method, Transfer
from sealift.wire.platform import Phase

from . import rig

_S = MigrationStatus
COMPLETED = [_S.SETUP, _S.ACTIVE, _S.DEVICE, _S.COMPLETED]


def moved(world: rig.World, guest: rig.Guest, parameters: Parameters | None = None) -> tuple[rig.Guest, rig.Attempt]:
    attempt = rig.attempt(world, guest, parameters)
    attempt.begin()
    info = attempt.end()
    assert info.status == "completed", info
    return attempt.guest(), attempt


@pytest.mark.parametrize("transfer", Transfer)
def test_a_guest_goes_on_at_the_target_where_it_stopped(world: rig.World, transfer: Transfer) -> None:
    """The chain it prints depends on every page it ever wrote, so an unmoved twin must print the same, line by line."""
    guest = world.start()
    guest.work(8)
    there, attempt = moved(world, guest, Parameters(transfer=transfer))
    assert attempt.statuses == COMPLETED
    there.work(40)
    there.machine.pause()
    twin = world.start()
    twin.wait_until(lambda: twin.updates() >= there.updates())
    whole = guest.text + there.text
    assert twin.text.startswith(whole[: whole.rindex("\n")])


@pytest.mark.attack("requests", "runs a guest on the host that it has left", gains="nothing")
def test_the_source_cannot_run_what_it_gave_away(world: rig.World) -> None:
    guest = world.start()
    moved(world, guest)
    assert guest.machine.state is RunState.POSTMIGRATE
    assert guest.machine.platform.status().phase is Phase.GONE


@pytest.mark.attack("guest memory", "searches the host that a guest has left", gains="nothing")
def test_nothing_of_a_guest_that_left_stays_in_the_sources_memory(world: rig.World) -> None:
    guest = world.start()
    guest.work(8)
    assert private_blocks(guest) > 0
    moved(world, guest)
    assert private_blocks(guest) == 0


def private_blocks(guest: rig.Guest) -> int:
    """Blocks that the private plane of a guest's platform has; only root can look."""
    descriptors = Path(f"/proc/{guest.machine.platform.pid}/fd")
    try:
        # The mapping holds a descriptor of its own: two lead to the one file.
        plane = next(link for link in descriptors.iterdir() if "sealift-private" in str(link.readlink()))
    except PermissionError:
        pytest.skip("the platform's descriptors can be seen by root alone")
    return plane.stat().st_blocks


def test_a_guest_moves_on_from_where_it_arrived(world: rig.World) -> None:
    guest = world.start()
    guest.work(4)
    second, _ = moved(world, guest)
    second.work(4)
    third, _ = moved(world, second)
    third.work(8)
    counts = list(rig.chain_in(guest.text + second.text + third.text))
    assert counts == list(range(4, max(counts) + 1, 4))


def test_several_vcpus_and_channels_move_together(hosts: Path) -> None:
    with rig.world(hosts, rig.recipe(vcpus=3)) as world:
        guest = world.start()
        guest.work(8)
        there, _ = moved(world, guest, Parameters(multifd_channels=3, capabilities=frozenset({Capability.MULTIFD})))
        there.wait_until(lambda: all(f"\nledger {vcpu} " in there.text for vcpu in (1, 2)))
        assert "FAULT" not in there.text


def test_a_paused_guest_arrives_paused_and_whole(world: rig.World) -> None:
    guest = world.start()
    guest.work(8)
    guest.machine.pause()
    there, _ = moved(world, guest)
    assert there.machine.state is RunState.PAUSED
    assert not there.text
    there.machine.resume()
    there.work(4)


@pytest.mark.attack("network", "reads every byte on the wire", gains="nothing: what is shared anyway, and lengths")
def test_the_wire_shows_what_is_shared_and_nothing_that_is_private(world: rig.World) -> None:
    """The marker stands in every shared page: that it is found says that the search for the secret would find it."""
    guest = world.start()
    guest.work(8)
    _, attempt = moved(world, guest)
    assert rig.MARKER.encode() in attempt.wire
    assert rig.SECRET not in attempt.wire
    assert rig.SECRET[:16] not in attempt.wire


def test_rounds_follow_a_guest_that_writes_while_they_last(hosts: Path) -> None:
    """At 1 MB/s and 10 ms of downtime one round is not enough, and the guest keeps everything."""
    slow = rig.COMMAND_LINE.replace("pause=10000", "pause=40000")
    with rig.world(hosts, rig.recipe(command_line=slow)) as world:
        guest = world.start()
        guest.work(4)
        attempt = rig.attempt(world, guest, Parameters(max_bandwidth=1_000_000, downtime_limit_ms=10))
        rig.chase(attempt.migration, guest)
        attempt.begin()
        info = attempt.end()
        assert info.status == "completed", info
        assert info.ram is not None
        assert info.ram.dirty_sync_count >= 3
        attempt.guest().work(20)


def test_what_query_migrate_says_adds_up(world: rig.World) -> None:
    guest = world.start()
    guest.work(4)
    _, attempt = moved(world, guest)
    info = attempt.migration.info()
    assert info.ram is not None
    assert info.x_sealift_pages is not None
    assert info.x_sealift_downtime_parts is not None
    assert info.ram.total == 16 << 20
    assert info.ram.remaining == 0
    assert info.ram.normal == info.x_sealift_pages.private_pages + info.x_sealift_pages.shared_pages
    assert len(attempt.wire) >= info.ram.transferred > info.ram.normal_bytes
    assert list(info.x_sealift_downtime_parts) == ["stop", "last-pages", "state", "commit", "start"]
    assert info.downtime == pytest.approx(sum(info.x_sealift_downtime_parts.values()), abs=1)
    assert info.x_sealift_migration_id is not None
    assert bytes.fromhex(info.x_sealift_migration_id) in attempt.wire


# --- the stream as QEMU's analyser reads it -------------------------------------------------------------------------


class Walker:
    """Reads a stream as scripts/analyze-migration.py does: ram by itself, all else by the description alone."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, shape: str) -> int:
        """An integer."""
        (found,) = struct.unpack_from(shape, self.data, self.at)
        self.at += struct.calcsize(shape)
        assert isinstance(found, int)
        return found

    def text(self, length: int) -> str:
        """A name."""
        self.at += length
        return self.data[self.at - length : self.at].decode()

    def ram(self) -> None:
        """A part of the ram section."""
        while True:
            header = self.take(">Q")
            flags, left = header & 0xFFF, header & ~0xFFF
            if flags & 0x04:
                while left > 0:
                    self.text(self.take(">b"))
                    left -= self.take(">Q")
            elif flags & 0x0A:
                if not flags & 0x20:
                    self.text(self.take(">b"))
                self.at += 1 if flags & 0x02 else 4096
            elif flags & 0x10:
                return
            else:
                pytest.fail(f"ram flags {flags:#x}")


def described(data: bytes) -> dict[str, object]:
    """The description, found from the stream's end as the analyser finds it."""
    at = data.index(b"{", data.rindex(b"\0"))
    assert data[at - 5] == 0x06
    assert int.from_bytes(data[at - 4 : at], "big") == len(data) - at
    found = json.loads(data[at:])
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("method", [Method.MH, Method.PSP])
def test_qemus_analyser_can_walk_the_stream(sendable: rig.World, method: Method) -> None:
    guest = sendable.start()
    guest.work(8)
    _, attempt = moved(sendable, guest, Parameters(method=method))
    final = {Method.MH: b"SLTK", Method.PSP: b"SLPW"}[method]
    wire = attempt.wire[: attempt.wire.rindex(final) - 5]  # FINAL is no part of it
    description = described(wire)
    sizes = {
        (device["name"], device["instance_id"]): [field["size"] for field in device["fields"]]
        for device in description["devices"]  # type: ignore[attr-defined]  # parsed JSON
    }
    walker = Walker(wire)
    assert (walker.take(">I"), walker.take(">I"), walker.take(">B")) == (0x5145564D, 3, 0x07)
    assert walker.text(walker.take(">I")) == "sealift-1"
    sections: dict[int, tuple[str, int]] = {}
    seen: list[str] = []
    while (kind := walker.take(">B")) != 0x00:
        number = walker.take(">I")
        if kind in {0x01, 0x04}:
            sections[number] = walker.text(walker.take(">b")), walker.take(">I")
            walker.take(">I")
            seen.append(sections[number][0])
        key = sections[number]
        if key == ("ram", 0):
            walker.ram()
        else:
            walker.at += sum(sizes[key])
        assert (walker.take(">B"), walker.take(">I")) == (0x7E, number)
    assert walker.take(">B") == 0x06
    assert {"ram", "sealift/sealed", "serial", "pause-port", "ready-port", "sealift/vcpus"} == {*seen}


# --- what fails leaves the guest running, and nothing else ------------------------------------------------------------


def open_things() -> tuple[int, set[str]]:
    """Descriptors of this process, and its children."""
    gc.collect()
    children = Path(f"/proc/{os.getpid()}/task")
    found = {pid for task in children.iterdir() for pid in (task / "children").read_text().split()}
    return len(list(Path("/proc/self/fd").iterdir())), found


def flipped(place: Callable[[bytes, int], int | None]) -> Callable[[bytes, int], bytes]:
    """Flip one bit, once, where `place` says."""
    done: list[int] = []

    def edit(data: bytes, before: int) -> bytes:
        at = None if done else place(data, before)
        if at is None:
            return data
        done.append(at)
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

    return edit


def in_record(offset: int) -> Callable[[bytes, int], int | None]:
    """A byte of the first sealed record with pages."""

    def place(data: bytes, _: int) -> int | None:
        at = data.find(b"SLRC\x02\x00\x01\x00")
        return None if at < 0 else at + offset

    return place


def at_byte(offset: int) -> Callable[[bytes, int], int | None]:
    """A byte of the stream by its place."""

    def place(data: bytes, before: int) -> int | None:
        return offset - before if before <= offset < before + len(data) else None

    return place


def of_section(name: bytes, offset: int) -> Callable[[bytes, int], int | None]:
    """A byte behind a section's name."""

    def place(data: bytes, _: int) -> int | None:
        at = data.find(name)
        return None if at < 0 else at + len(name) + offset

    return place


DAMAGE = {
    "magic": (at_byte(0), "no migration stream"),
    "version": (at_byte(7), "the stream has version 2"),
    "machine": (at_byte(15), "this target has 'sealift-1'"),
    "ram version": (of_section(b"\x03ram", 7), "section 'ram' has version 5"),
    "block size": (of_section(b"pc.ram", 1), "pc.ram"),
    "record header": (in_record(20), "record"),
    "page number": (in_record(56), "record"),
    "ciphertext": (in_record(500), "not authentic"),
    "record length": (in_record(-1), "does not end where it should"),
    "device name": (of_section(b"\x06serial", -1), "no device of this machine"),
    "device version": (of_section(b"\x06serial", 7), "section 'serial' has version"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_flipped_bit_is_refused_with_a_reason_and_the_guest_runs_on(world: rig.World, what: str) -> None:
    place, reason = DAMAGE[what]
    guest = world.start()
    guest.work(4)
    guest.machine.platform.open_handler()  # stays open for as long as the guest is here
    before = open_things()
    attempt = rig.attempt(world, guest, edit=flipped(place))
    attempt.begin()
    info = attempt.end(listening=True)
    assert info.status == "failed", info
    assert info.error_desc is not None
    assert info.error_desc.startswith("the target refused: ")
    assert reason in info.error_desc
    assert attempt.refused is not None
    guest.work(8)
    assert open_things() == before


def test_a_truncated_stream_leaves_the_guest_running(world: rig.World) -> None:
    guest = world.start()
    guest.work(4)

    def cut(data: bytes, before: int) -> bytes:
        if before + len(data) > 20_000:
            attempt.migration._sock.shutdown(1)  # type: ignore[union-attr]  # the line is cut for what follows
        return data

    attempt = rig.attempt(world, guest, edit=cut)
    attempt.begin()
    info = attempt.end()
    assert info.status == "failed"
    assert "the stream is truncated" in (attempt.refused or "")
    assert "the stream is truncated" in (info.error_desc or "")
    guest.work(8)


def test_a_guest_can_move_after_an_attempt_failed(world: rig.World) -> None:
    guest = world.start()
    guest.work(4)
    failing = rig.attempt(world, guest, edit=flipped(in_record(500)))
    failing.begin()
    assert failing.end().status == "failed"
    guest.work(4)
    there, _ = moved(world, guest)
    there.work(8)


@pytest.mark.attack("receivers", "waits with another owner than the guest's", gains="nothing")
def test_a_target_that_its_owner_does_not_approve_gets_nothing(world: rig.World, hosts: Path) -> None:
    guest = world.start()
    guest.work(4)
    with rig.world(hosts, rig.recipe()) as strangers:
        attempt = rig.attempt(world, guest, owner=strangers.owner)
        attempt.begin()
        info = attempt.end(listening=True)
    assert info.status == "failed"
    assert "no released launch has the measurement" in (info.error_desc or "")
    assert b"SLRC" not in attempt.wire
    guest.work(8)


def test_nobody_listening_is_said_at_once(world: rig.World) -> None:
    guest = world.start()
    attempt = rig.attempt(world, guest)
    attempt.incoming.close()
    info = attempt.migration.run(str(attempt.incoming.address))
    assert info.status == "failed"
    assert re.fullmatch(r"nobody listens on tcp:127\.0\.0\.1:\d+; start the target first(: .*)?", info.error_desc or "")
    guest.work(4)


@pytest.mark.parametrize("moment", [0, 2000, 30_000])
def test_a_cancelled_migration_leaves_the_guest_running_here(world: rig.World, moment: int) -> None:
    guest = world.start()
    guest.work(4)
    guest.machine.platform.open_handler()  # stays open for as long as the guest is here
    before = open_things()

    def cancel(data: bytes, sent: int) -> bytes:
        if sent + len(data) > moment:
            attempt.migration.cancel()
        return data

    attempt = rig.attempt(world, guest, edit=cancel)
    attempt.begin()
    info = attempt.end(listening=True)
    assert info.status == "cancelled", info
    assert attempt.statuses[-2:] == [_S.CANCELLING, _S.CANCELLED]
    assert attempt.refused is not None
    guest.work(8)
    assert open_things() == before


def test_a_target_that_is_cancelled_tells_the_source(world: rig.World) -> None:
    guest = world.start()
    guest.work(4)

    def cancel(data: bytes, sent: int) -> bytes:
        if sent > 20_000:
            attempt.incoming.cancel()
        return data

    attempt = rig.attempt(world, guest, edit=cancel)
    attempt.begin()
    assert attempt.end().status == "failed"
    guest.work(8)


# --- after FINAL ------------------------------------------------------------------------------------------------------


def lost_after_final(world: rig.World, guest: rig.Guest, *, deliver_final: bool) -> rig.Attempt:
    """The line breaks with FINAL: before it arrives, or just behind it."""

    def edit(data: bytes, _: int) -> bytes:
        if b"SLTK" in data:
            attempt.cut(deliver=deliver_final)
        return data

    attempt = rig.attempt(world, guest, edit=edit)
    attempt.begin()
    info = attempt.end()
    assert info.status == "failed"
    assert info.x_sealift_fenced
    assert "sealift token import" in (info.error_desc or "")
    assert guest.machine.state is RunState.FINISH_MIGRATE
    assert guest.machine.platform.status().phase is Phase.FENCED
    return attempt


def test_a_source_that_lost_its_target_after_final_stays_fenced_until_a_token_settles_it(world: rig.World) -> None:
    """FINAL never arrived, the target gave up: its ABORTED token, brought by hand, lets the guest run here again."""
    guest = world.start()
    guest.work(4)
    attempt = lost_after_final(world, guest, deliver_final=False)
    assert attempt.arrived is None
    attempt.migration.settle(attempt.incoming.aborted)
    guest.work(8)
    there, _ = moved(world, guest)
    there.work(4)


def test_a_source_that_missed_started_learns_it_from_the_token(world: rig.World) -> None:
    """FINAL arrived and the guest runs at the target; the source must never run it, and its state says so."""
    guest = world.start()
    guest.work(4)
    attempt = lost_after_final(world, guest, deliver_final=True)
    there = attempt.guest()
    there.work(8)
    assert attempt.arrived is not None
    attempt.migration.settle(attempt.arrived.started)
    assert attempt.migration.info().status == "completed"
    assert guest.machine.platform.status().phase is Phase.GONE


def test_a_guest_that_was_handed_over_cannot_be_cancelled(world: rig.World) -> None:
    guest = world.start()

    def cancel(data: bytes, _: int) -> bytes:
        if b"SLTK" in data:
            with pytest.raises(Exception, match="too late to cancel"):
                attempt.migration.cancel()
        return data

    attempt = rig.attempt(world, guest, edit=cancel)
    attempt.begin()
    assert attempt.end().status == "completed"
    attempt.guest()
