"""Private pages that are zero: sealed like all others, unless the owner allows to leave their content out."""

from __future__ import annotations

import pytest

from sealift.address import PAGE_SIZE
from sealift.errors import SealError
from sealift.launch.secrets import MigrationFlags
from sealift.wire.record import RecordHeader, RecordKind, page_record_size

from .rig import Hosts, Vmm, write_some

ZEROS = bytes(PAGE_SIZE)


def zeroing_some(hosts: Hosts) -> Vmm:
    """A migration whose guest has content in many pages, and wrote zeros over pages 8 to 11 and 13."""
    write_some(hosts.guest)
    for page in (8, 9, 10, 11, 13):
        hosts.guest.write(page, ZEROS)
    return hosts.connect()


def pages_records(records: list[bytes]) -> list[RecordHeader]:
    """Headers of the records with pages."""
    return [header for header in map(RecordHeader.decode, records) if header.kind is RecordKind.PAGES]


def test_without_the_owners_word_zero_pages_look_like_any_other_page() -> None:
    hosts = Hosts()
    vmm = zeroing_some(hosts)
    assert all(header.length == header.count * PAGE_SIZE for header in pages_records(vmm.round()))


def test_with_it_only_their_numbers_travel_and_they_are_zero_at_the_target() -> None:
    hosts = Hosts(flags=MigrationFlags.SKIP_ZERO_PAGES)
    vmm = zeroing_some(hosts)
    records = vmm.round()
    left_out = sum(header.count - (header.length // PAGE_SIZE) for header in pages_records(records))
    assert left_out >= 5
    vmm.deliver(records)
    vmm.deliver(vmm.finish())
    assert hosts.same()
    assert hosts.landed.content(9) == ZEROS


def test_a_page_may_be_zero_in_one_round_and_not_in_the_next_and_the_other_way_round() -> None:
    hosts = Hosts(flags=MigrationFlags.SKIP_ZERO_PAGES)
    vmm = zeroing_some(hosts)
    vmm.deliver(vmm.round())
    hosts.guest.write(9, b"again".ljust(PAGE_SIZE, b"."))
    hosts.guest.write(12, ZEROS)
    vmm.deliver(vmm.round())
    vmm.deliver(vmm.finish())
    assert hosts.same()


@pytest.mark.attack("records", "makes a page one of zeros by its header", gains="denial of service")
def test_nobody_on_the_wire_can_make_a_page_zero() -> None:
    hosts = Hosts(flags=MigrationFlags.SKIP_ZERO_PAGES)
    vmm = zeroing_some(hosts)
    records = vmm.round()
    while not RecordHeader.decode(records[0]).length:
        vmm.deliver([records.pop(0)])
    record = bytearray(records[0])
    header = RecordHeader.decode(record)
    shorter = RecordHeader(
        header.kind,
        header.leg,
        header.channel,
        header.epoch,
        header.sequence,
        header.migration,
        header.count,
        header.length - PAGE_SIZE,
    )
    record[: len(shorter.encode())] = shorter.encode()
    with pytest.raises(SealError, match="not authentic"):
        hosts.target.open(memoryview(record[: shorter.size]))


def test_a_page_through_the_mailbox_has_the_same_length_whatever_it_contains() -> None:
    hosts = Hosts(flags=MigrationFlags.SKIP_ZERO_PAGES)
    zeroing_some(hosts)
    hosts.source.begin_epoch()
    assert {len(hosts.source.seal_page(page) or b"") for page in (9, 12)} == {page_record_size(1)}
