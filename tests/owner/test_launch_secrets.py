"""What an owner puts into a launch secret for the migration handler, and how the handler takes it out."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealift.errors import SealiftError, StreamError
from sealift.launch.secrets import (
    GUEST_GUID,
    MIGRATION_GUID,
    MigrationFlags,
    MigrationSecret,
    pair_key,
    snapshot_key,
    take_migration_secret,
)
from sealift.sev.secret import SecretEntry, build_table, parse_table

ROOM = 512


@pytest.fixture(params=["source", "receiver", "restore"])
def planted(request: pytest.FixtureRequest) -> MigrationSecret:
    mine = MigrationSecret(os.urandom(16), os.urandom(32), flags=MigrationFlags.SKIP_ZERO_PAGES)
    match request.param:
        case "receiver":
            return replace(mine, pair_key=os.urandom(32))
        case "restore":
            return replace(mine, snapshot_key=os.urandom(32))
        case _:
            return mine


def test_the_handler_takes_the_secret_and_leaves_zeros(planted: MigrationSecret) -> None:
    """Test that nothing of the secret stays in guest memory, and that the guest's own entries do."""
    mine = SecretEntry(GUEST_GUID, b"the guest's own")
    area = bytearray(build_table([mine, planted.entry(), mine]) + bytes(ROOM))
    assert take_migration_secret(area) == planted
    for key in (planted.key, planted.pair_key, planted.snapshot_key, planted.instance_id):
        assert key is None or key not in area
    zeros = bytes(len(planted.encode()))
    assert parse_table(bytes(area)) == [mine, SecretEntry(MIGRATION_GUID, zeros), mine]


def test_it_works_on_a_view_of_guest_memory(planted: MigrationSecret) -> None:
    memory = bytearray(build_table([planted.entry()]))
    assert take_migration_secret(memoryview(memory)) == planted
    assert planted.key not in memory


@pytest.mark.parametrize("area", [b"", bytes(4096), build_table([SecretEntry(GUEST_GUID, b"only mine")])])
def test_no_entry_no_migration(area: bytes) -> None:
    assert take_migration_secret(bytearray(area)) is None


def test_two_migration_secrets_are_an_error_and_both_are_gone(planted: MigrationSecret) -> None:
    area = bytearray(build_table([planted.entry(), planted.entry()]))
    with pytest.raises(StreamError, match="2 migration secrets"):
        take_migration_secret(area)
    assert planted.key not in area


@pytest.mark.parametrize(("offset", "complaint"), [(0, "version"), (5, "unknown flags")], ids=["version", "flags"])
def test_what_this_version_does_not_know_is_refused_and_gone(
    planted: MigrationSecret, offset: int, complaint: str
) -> None:
    data = bytearray(planted.encode())
    data[offset] ^= 0x80
    area = bytearray(build_table([SecretEntry(MIGRATION_GUID, bytes(data))]))
    with pytest.raises(StreamError, match=complaint):
        take_migration_secret(area)
    assert planted.key not in area


@given(st.binary(max_size=200))
def test_arbitrary_data_ends_in_a_value_or_a_declared_error(data: bytes) -> None:
    area = bytearray(build_table([SecretEntry(MIGRATION_GUID, data)]))
    with contextlib.suppress(SealiftError):
        take_migration_secret(area)
    assert not any(area[40 : 40 + len(data)])


def test_keys_are_never_shown(planted: MigrationSecret) -> None:
    shown = repr(planted) + repr(planted.entry())
    for key in (planted.key, planted.pair_key, planted.snapshot_key):
        assert key is None or (repr(key)[2:-1] not in shown and key.hex() not in shown)


@pytest.mark.parametrize("sizes", [(15, 32, 32), (16, 31, 32), (16, 32, 33)])
def test_keys_have_one_size(sizes: tuple[int, int, int]) -> None:
    instance_id, key, pair = (bytes(size) for size in sizes)
    with pytest.raises(ValueError, match="16, 32 and 32"):
        MigrationSecret(instance_id, key, pair)


def test_the_pair_key_is_hkdf_over_the_receivers_whole_measurement() -> None:
    """Test against RFC 5869 written out: extract with a zero salt, expand one block."""
    source_key, measure = os.urandom(32), os.urandom(48)
    extracted = hmac.digest(bytes(32), source_key, "sha256")
    assert pair_key(source_key, measure) == hmac.digest(extracted, b"pair" + measure + b"\x01", "sha256")
    with pytest.raises(ValueError, match="48 bytes"):
        pair_key(source_key, measure[:32])


def test_a_receiver_takes_a_migration_or_a_snapshot() -> None:
    with pytest.raises(ValueError, match="not both"):
        MigrationSecret(bytes(16), bytes(32), bytes(32), snapshot_key=bytes(32))


def test_a_secret_for_a_restore_without_its_key_is_refused() -> None:
    """Else it would be taken for a guest's own."""
    whole = MigrationSecret(bytes(16), bytes(32), snapshot_key=bytes(32)).encode()
    with pytest.raises(StreamError, match="holds no snapshot key"):
        MigrationSecret.decode(whole[:-32])


def test_the_snapshot_key_is_hkdf_over_the_whole_header() -> None:
    """Test against RFC 5869 written out; whatever the header, it is no pair key of the same launch."""
    source_key, header = os.urandom(32), os.urandom(200)
    extracted = hmac.digest(bytes(32), source_key, "sha256")
    info = b"snapshot" + hashlib.sha256(header).digest()
    assert snapshot_key(source_key, header) == hmac.digest(extracted, info + b"\x01", "sha256")
