from __future__ import annotations

import hmac
import os
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealift.errors import FirmwareError, StreamError, UserError
from sealift.sev import packet, secret
from sealift.sev.packet import Context, Header
from sealift.sev.secret import LUKS_KEY_GUID, SecretEntry
from sealift.sev.session import TransportKeys, ctr
from sealift.sev.status import Status

OTHER = UUID("6b0b6a3c-2c3e-4f39-9a0a-0d6f0d4f8a11")


def test_layout_of_a_table() -> None:
    table = secret.build_table([SecretEntry(LUKS_KEY_GUID, b"open sesame")])
    assert table == (
        bytes.fromhex("42f5741edd71664d963eef4287ff173b")
        + (20 + 31).to_bytes(4, "little")
        + bytes.fromhex("e5696873f084734992ec06879ce3da0b")
        + (31).to_bytes(4, "little")
        + b"open sesame"
        + bytes(64 - 51)
    )


@given(st.lists(st.tuples(st.uuids(), st.binary(max_size=80)), max_size=8), st.integers(0, 40))
def test_a_table_reads_back_from_a_larger_area(items: list[tuple[UUID, bytes]], room: int) -> None:
    entries = [SecretEntry(guid, data) for guid, data in items]
    assert secret.parse_table(secret.build_table(entries) + bytes(room)) == entries


def test_memory_without_a_table_holds_no_entries() -> None:
    assert secret.find_entries(bytes(4096)) is None
    assert secret.parse_table(b"") == []


@pytest.mark.parametrize(("offset", "value"), [(16, 19), (16, 4096), (36, 19), (36, 33), (16, 40)], ids=str)
def test_lengths_that_lead_out_of_the_table_are_refused(offset: int, value: int) -> None:
    table = bytearray(secret.build_table([SecretEntry(OTHER, b"0123456789ab")]))
    table[offset : offset + 4] = value.to_bytes(4, "little")
    with pytest.raises(StreamError):
        secret.find_entries(table)


def test_a_table_has_a_limit() -> None:
    secret.build_table([SecretEntry(OTHER, bytes(secret.SIZE_LIMIT - 40))])
    with pytest.raises(UserError, match="at most 16384"):
        secret.build_table([SecretEntry(OTHER, bytes(secret.SIZE_LIMIT - 39))])


def test_a_packet_opens_only_for_its_own_launch() -> None:
    transport, measure, table = TransportKeys.fresh(), os.urandom(48), os.urandom(64)
    header, payload = secret.make_packet(transport, measure, table)
    assert len(header) == packet.HEADER_SIZE
    assert secret.open_packet(transport, measure, header, payload) == table
    for keys, output in ((TransportKeys.fresh(), measure), (transport, os.urandom(48))):
        with pytest.raises(FirmwareError) as caught:
            secret.open_packet(keys, output, header, payload)
        assert caught.value.status == Status.BAD_MEASUREMENT


def test_the_mac_of_a_secret_covers_what_the_api_lists() -> None:
    transport, measure = TransportKeys.fresh(), os.urandom(48)
    header, payload = secret.make_packet(transport, measure, b"secret of 32 bytes, in two blocks")
    flags, iv, mac = header[:4], header[4:20], header[20:]
    length = len(payload).to_bytes(4, "little")
    message = b"\x01" + flags + iv + length + length + payload + measure[:32]
    assert hmac.digest(transport.tik, message, "sha256") == mac
    assert ctr(transport.tek, iv, payload) == b"secret of 32 bytes, in two blocks"


def test_contexts_do_not_mix() -> None:
    """Test that a data packet cannot be passed off as a secret."""
    transport = TransportKeys.fresh()
    header, payload = packet.seal(transport, Context.DATA, bytes(16))
    with pytest.raises(FirmwareError):
        packet.unseal(transport, Context.SECRET, header, payload)


def test_compressed_packets_are_unsupported_only_when_authentic() -> None:
    transport, payload = TransportKeys.fresh(), bytes(16)
    forged = Header(packet.COMPRESSED, bytes(16), bytes(32))
    length = (16).to_bytes(4, "little")
    message = b"\x02" + bytes((1, 0, 0, 0)) + bytes(16) + length + length + payload
    genuine = Header(packet.COMPRESSED, bytes(16), hmac.digest(transport.tik, message, "sha256"))
    for header, status in ((forged, Status.BAD_MEASUREMENT), (genuine, Status.UNSUPPORTED)):
        with pytest.raises(FirmwareError) as caught:
            packet.unseal(transport, Context.DATA, header, payload)
        assert caught.value.status == status


def test_secrets_are_never_shown() -> None:
    assert "open sesame" not in repr(SecretEntry(OTHER, b"open sesame"))
