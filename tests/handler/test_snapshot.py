"""A snapshot opens where the owner lets it, whole and unaltered or not at all, and leaves its source as it was."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from sealift.errors import PeerError, SealError, StreamError, UserError
from sealift.guest.handler.commit import Event, Role, State
from sealift.guest.handler.handler import MigrationHandler
from sealift.launch.secrets import MigrationSecret, snapshot_key
from sealift.wire.handshake import NO_PUBLIC, decode_snapshot
from sealift.wire.record import RecordHeader
from sealift.wire.token import TOKEN_SIZE, TokenKind

from .rig import SOURCE_FACTS, FakeGuest, Hosts, Vmm, write_some

MARKER = b"what only the guest knows"


@dataclass
class Snapshot:
    """What a VMM would have in a file."""

    header: bytes
    records: list[bytes]
    end: bytes

    @property
    def digest(self) -> bytes:
        """Of everything before the end."""
        return hashlib.sha256(b"".join((self.header, *self.records))).digest()


def saving(hosts: Hosts, channels: int = 1) -> tuple[bytes, Vmm]:
    """A snapshot that has begun: its header, and the VMM that goes on."""
    header = hosts.source.save(channels)
    return header, Vmm(hosts, channels)


def take(hosts: Hosts, channels: int = 1) -> Snapshot:
    """A snapshot in two live rounds and a last one; the guest runs on."""
    header, vmm = saving(hosts, channels)
    records = vmm.round()
    hosts.guest.write(30, MARKER)
    records += vmm.round() + vmm.finish()
    made = Snapshot(header, records, b"")
    made.end = hosts.source.end_snapshot(made.digest)
    hosts.guest.halted = False
    return made


class Receiver:
    """A receiver that the owner released for one snapshot."""

    def __init__(self, hosts: Hosts, header: bytes, key: bytes | None = None) -> None:
        released = key or snapshot_key(hosts.source_secret.key, header)
        self.secret = MigrationSecret(hosts.instance, os.urandom(32), snapshot_key=released)
        self.guest = FakeGuest(hosts.target_facts.layout.pages)
        for page in range(self.guest.pages):
            self.guest.write(page, b"receiver image")
        self.handler = MigrationHandler(Role.RESTORE, hosts.target_facts, self.secret, self.guest.parts(), hosts.clock)

    def restore(self, snapshot: Snapshot, digest: bytes | None = None) -> None:
        """As an honest VMM does."""
        self.handler.restore(snapshot.header)
        for record in snapshot.records:
            self.handler.open(memoryview(record))
        self.handler.take_snapshot(snapshot.end, digest or snapshot.digest)
        self.handler.token(TokenKind.STARTED)


@pytest.fixture
def hosts() -> Hosts:
    made = Hosts()
    write_some(made.guest)
    return made


def refused(receiver: Receiver, snapshot: Snapshot, reason: str) -> None:
    """It is refused for that reason and can never run."""
    with pytest.raises((SealError, StreamError), match=reason):
        receiver.restore(snapshot)
    receiver.handler.cancel()
    assert receiver.handler.state is State.ABORTED
    assert not receiver.handler.may_run


@pytest.mark.parametrize("channels", [1, 3])
def test_a_restored_guest_is_the_one_that_was_saved(hosts: Hosts, channels: int) -> None:
    snapshot = take(hosts, channels)
    receiver = Receiver(hosts, snapshot.header)
    receiver.restore(snapshot)
    assert receiver.handler.state is State.STARTED
    hosts.landed = receiver.guest
    assert hosts.same()


def test_the_source_runs_on_and_can_be_saved_and_moved_again(hosts: Hosts) -> None:
    first = take(hosts)
    assert (hosts.source.state, hosts.source.may_run) == (State.RUNNING, True)
    hosts.guest.write(12, b"after the first snapshot")
    second = take(hosts)
    vmm = hosts.connect()
    vmm.deliver([*vmm.round(), *vmm.finish()])
    vmm.hand_over()
    assert hosts.same()
    for snapshot, there in ((first, False), (second, True)):
        receiver = Receiver(hosts, snapshot.header)
        receiver.restore(snapshot)
        assert (b"after the first" in receiver.guest.content(12)) is there


def test_the_guest_may_run_but_for_the_last_round(hosts: Hosts) -> None:
    _, vmm = saving(hosts)
    vmm.round()
    assert hosts.source.may_run
    vmm.halt()
    assert not hosts.source.may_run
    vmm.round()
    vmm.state()
    hosts.source.close()
    assert not hosts.source.may_run
    hosts.source.end_snapshot(bytes(32))
    assert hosts.source.may_run


@pytest.mark.parametrize("stage", ["begun", "stopped", "closed"])
def test_a_cancelled_snapshot_leaves_the_guest_as_it_was(hosts: Hosts, stage: str) -> None:
    _, vmm = saving(hosts)
    vmm.round()
    if stage != "begun":
        vmm.halt()
    if stage == "closed":
        vmm.round()
        vmm.state()
        hosts.source.close()
    hosts.source.cancel()
    assert (hosts.source.state, hosts.source.may_run) == (State.RUNNING, True)
    with pytest.raises(UserError, match="cannot end the snapshot"):
        hosts.source.end_snapshot(bytes(32))
    hosts.guest.halted = False
    receiver = Receiver(hosts, (snapshot := take(hosts)).header)
    receiver.restore(snapshot)


def test_a_snapshot_is_not_ended_with_pages_unsent(hosts: Hosts) -> None:
    _, vmm = saving(hosts)
    vmm.round()
    vmm.halt()
    with pytest.raises(UserError, match="cannot end the snapshot in state HELD"):
        hosts.source.end_snapshot(bytes(32))


def test_a_restored_guest_can_be_saved_and_restored_again(hosts: Hosts) -> None:
    first = Receiver(hosts, (snapshot := take(hosts)).header)
    first.restore(snapshot)
    hosts.source, hosts.guest, hosts.source_secret = first.handler, first.guest, first.secret
    hosts.guest.write(12, b"in its second life")
    again = Receiver(hosts, (later := take(hosts)).header)
    again.restore(later)
    assert b"second life" in again.guest.content(12)


def test_two_snapshots_of_the_same_memory_share_no_key_and_no_bytes(hosts: Hosts) -> None:
    """The nonces are the same, so one key for both would give content away."""
    one, other = (take(hosts) for _ in range(2))
    assert decode_snapshot(one.header).migration != decode_snapshot(other.header).migration
    for left, right in zip(one.records, other.records, strict=True):
        body = RecordHeader.decode(left).body
        if len(left) > body + 64:
            assert left[body : body + 64] != right[body : body + 64]


def test_what_the_guest_wrote_is_not_in_its_snapshot(hosts: Hosts) -> None:
    snapshot = take(hosts)
    whole = b"".join((snapshot.header, *snapshot.records, snapshot.end))
    assert MARKER not in whole
    assert hosts.source_secret.key not in whole


# --- whoever holds the file -----------------------------------------------------------------------------------------


@pytest.mark.attack("files", "changes any record of a snapshot", gains="denial of service")
def test_a_changed_bit_is_refused_in_whichever_record_it_is(hosts: Hosts) -> None:
    snapshot = take(hosts)
    for index, record in enumerate(snapshot.records):
        for at in (40, len(record) // 2, len(record) - 1):
            altered = bytearray(record)
            altered[at] ^= 1
            records = [*snapshot.records[:index], bytes(altered), *snapshot.records[index + 1 :]]
            receiver = Receiver(hosts, snapshot.header)
            refused(receiver, replace(snapshot, records=records), "record|epoch|close")


@pytest.mark.attack("files", "drops, repeats or exchanges records of a snapshot", gains="denial of service")
def test_dropped_repeated_and_exchanged_records_are_refused(hosts: Hosts) -> None:
    snapshot = take(hosts)
    records = snapshot.records
    for index in range(len(records) - 1):
        exchanged = [*records[:index], records[index + 1], records[index], *records[index + 2 :]]
        for changed in (records[:index] + records[index + 1 :], [*records[: index + 1], *records[index:]], exchanged):
            receiver = Receiver(hosts, snapshot.header)
            refused(receiver, replace(snapshot, records=changed), "out of turn|epoch|counts|after")


def test_a_truncated_snapshot_does_not_start(hosts: Hosts) -> None:
    snapshot = take(hosts)
    receiver = Receiver(hosts, snapshot.header)
    with pytest.raises(UserError, match="RESTORING"):
        receiver.restore(replace(snapshot, records=snapshot.records[:-1]))
    with pytest.raises(UserError, match="cannot start the guest"):
        receiver.handler.token(TokenKind.STARTED)
    assert not receiver.handler.may_run


@pytest.mark.attack("files", "mixes two snapshots of one guest", gains="denial of service")
@pytest.mark.parametrize("splice", [0, 3, -1])
def test_records_of_another_snapshot_of_the_same_guest_are_refused(hosts: Hosts, splice: int) -> None:
    older, newer = take(hosts), take(hosts)
    records = list(newer.records)
    records[splice] = older.records[splice]
    refused(Receiver(hosts, newer.header), replace(newer, records=records), "another migration")


@pytest.mark.attack("files", "puts another snapshot's end behind it", gains="denial of service")
def test_the_end_of_another_snapshot_is_refused(hosts: Hosts) -> None:
    older, newer = take(hosts), take(hosts)
    refused(Receiver(hosts, newer.header), replace(newer, end=older.end), "another migration")


@pytest.mark.attack("files", "changes what lies in clear between the records", gains="denial of service")
def test_whatever_lies_beside_the_records_is_covered_by_the_end(hosts: Hosts) -> None:
    snapshot = take(hosts)
    receiver = Receiver(hosts, snapshot.header)
    with pytest.raises(SealError, match="the snapshot was altered"):
        receiver.restore(snapshot, hashlib.sha256(b"other devices").digest())
    assert receiver.handler.state is State.ABORTED


@pytest.mark.parametrize("at", range(0, TOKEN_SIZE, 5))
def test_no_other_end_will_do(hosts: Hosts, at: int) -> None:
    snapshot = take(hosts)
    altered = bytearray(snapshot.end)
    altered[at] ^= 1
    refused(Receiver(hosts, snapshot.header), replace(snapshot, end=bytes(altered)), "token")


@pytest.mark.attack("files", "puts a snapshot's header before another's records", gains="denial of service")
def test_a_header_put_before_another_snapshots_records_opens_none(hosts: Hosts) -> None:
    """Not even with the id of those records in it."""
    older, newer = take(hosts), take(hosts, channels=2)
    refused(Receiver(hosts, older.header), replace(newer, header=older.header), "another migration")
    forged = older.header[:8] + newer.header[8:24] + older.header[24:]
    refused(Receiver(hosts, forged), replace(newer, header=forged), "not authentic")


@pytest.mark.parametrize(
    "change",
    [{"policy": 1}, {"cbit": 47}, {"vcpus": 3}, {"excluded": (5, 7)}, {"measure": bytes(48)}],
    ids=lambda change: next(iter(change)),
)
def test_a_header_that_was_changed_opens_nothing(hosts: Hosts, change: dict[str, object]) -> None:
    """Even if the owner were to release a key for it, and the receiver were of that shape."""
    snapshot = take(hosts)
    hello = decode_snapshot(snapshot.header)
    forged = replace(hello, party=replace(hello.party, **change)).encode()  # type: ignore[arg-type]
    if "measure" not in change:
        with pytest.raises(SealError, match="is not this one"):
            Receiver(hosts, forged).handler.restore(forged)
        hosts.target_facts = replace(hosts.target_facts, **change)  # type: ignore[arg-type]
    refused(Receiver(hosts, forged), replace(snapshot, header=forged), "not authentic")


def test_another_owners_key_opens_nothing(hosts: Hosts) -> None:
    snapshot = take(hosts)
    refused(Receiver(hosts, snapshot.header, os.urandom(32)), snapshot, "not authentic")


def test_the_key_of_one_snapshot_opens_no_other(hosts: Hosts) -> None:
    older, newer = take(hosts), take(hosts)
    refused(Receiver(hosts, older.header), newer, "not authentic")


def test_another_instance_is_refused_by_its_name(hosts: Hosts) -> None:
    snapshot = take(hosts)
    hosts.instance = os.urandom(16)
    receiver = Receiver(hosts, snapshot.header)
    with pytest.raises(SealError, match="its instance id differ"):
        receiver.restore(snapshot)


# --- whoever drives the handlers ------------------------------------------------------------------------------------


@pytest.mark.attack("files", "restores twice with one release of the owner", gains="nothing")
def test_a_receiver_restores_once_in_its_life(hosts: Hosts) -> None:
    receiver = Receiver(hosts, (snapshot := take(hosts)).header)
    receiver.restore(snapshot)
    with pytest.raises(UserError, match="cannot take a snapshot's header in state STARTED"):
        receiver.handler.restore(snapshot.header)


def test_neither_kind_of_receiver_does_the_others_work(hosts: Hosts) -> None:
    snapshot = take(hosts)
    with pytest.raises(UserError, match="cannot take a snapshot's header in state WAITING"):
        hosts.target.restore(snapshot.header)
    receiver = Receiver(hosts, snapshot.header)
    with pytest.raises(UserError, match="cannot answer an offer in state BLANK"):
        receiver.handler.answer(hosts.source.offer())


def test_a_snapshots_end_is_no_final_and_final_is_no_end(hosts: Hosts) -> None:
    """The digests differ in what they are of; the kinds are refused even if they did not."""
    vmm = hosts.connect()
    vmm.deliver([*vmm.round(), *vmm.finish()])
    outgoing = hosts.source._outgoing
    assert outgoing is not None
    with pytest.raises(SealError, match="no place in a migration"):
        hosts.target.deliver(outgoing.desk.make(TokenKind.SNAPSHOT))
    assert hosts.target.state is State.PREPARED


@pytest.mark.attack("files", "restores a recorded migration as a snapshot", gains="denial of service")
def test_a_migrations_token_cannot_end_a_snapshot(hosts: Hosts) -> None:
    header, vmm = saving(hosts)
    records = [*vmm.round(), *vmm.finish()]
    outgoing = hosts.source._outgoing
    assert outgoing is not None
    snapshot = Snapshot(header, records, outgoing.desk.make(TokenKind.FINAL))
    refused(Receiver(hosts, header), snapshot, "FINAL token cannot end a snapshot")


@pytest.mark.attack("files", "ends a snapshot by a migration's FINAL", gains="denial of service")
def test_a_restore_takes_no_final_in_the_place_of_its_end(hosts: Hosts) -> None:
    header, vmm = saving(hosts)
    records = [*vmm.round(), *vmm.finish()]
    outgoing = hosts.source._outgoing
    assert outgoing is not None
    receiver = Receiver(hosts, header)
    receiver.handler.restore(header)
    for record in records:
        receiver.handler.open(memoryview(record))
    with pytest.raises(UserError, match="cannot take a FINAL token in state RESTORED"):
        receiver.handler.deliver(outgoing.desk.make(TokenKind.FINAL))
    assert not receiver.handler.may_run


@pytest.mark.parametrize("event", [Event.OFFER, Event.YIELD, Event.TAKE_PREPARED, Event.MAKE_FINAL])
def test_a_snapshot_gives_away_no_right_to_run_nor_the_guest(hosts: Hosts, event: Event) -> None:
    _, vmm = saving(hosts)
    assert not hosts.source.allows(event)
    vmm.round()
    vmm.finish()
    assert not hosts.source.allows(event)


@pytest.mark.parametrize("channels", [0, 17])
def test_channels_are_limited(hosts: Hosts, channels: int) -> None:
    with pytest.raises(UserError, match="ask for 1 to 16"):
        hosts.source.save(channels)
    assert hosts.source.state is State.RUNNING


def test_without_the_owners_key_there_is_no_snapshot() -> None:
    guest = FakeGuest(SOURCE_FACTS.layout.pages)
    handler = MigrationHandler(Role.SOURCE, SOURCE_FACTS, None, guest.parts(), Hosts().clock)
    with pytest.raises(UserError, match="gave no migration key"):
        handler.save()


def test_a_guest_that_is_not_ready_is_not_saved(hosts: Hosts) -> None:
    hosts.guest.willing = False
    with pytest.raises(PeerError, match="does not say"):
        hosts.source.save()


def test_a_header_with_a_public_key_is_refused(hosts: Hosts) -> None:
    hello = decode_snapshot(hosts.source.save())
    assert hello.party.public == NO_PUBLIC
    with pytest.raises(StreamError, match="holds a public key"):
        decode_snapshot(replace(hello, party=replace(hello.party, public=os.urandom(32))).encode())


def _cut(data: bytes, at: int) -> bytes:
    return data[:at]


def _grown(data: bytes, at: int) -> bytes:
    return data + bytes(at + 1)


@pytest.mark.parametrize("change", [_cut, _grown])
def test_a_header_of_another_length_is_refused(hosts: Hosts, change: Callable[[bytes, int], bytes]) -> None:
    header = take(hosts).header
    for at in range(0, len(header), 7):
        with pytest.raises(StreamError):
            decode_snapshot(change(header, at))
