"""The parsers that take bytes from files, networks and guests, each with inputs to begin with.

A parser ends with a value or with an error of the project's tree; anything else is a finding. Seeds are formats as they
are when right, so that the fuzzer begins behind the magic numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from launch.bzimages import bzimage as a_bzimage
from sealift.address import PAGE_SIZE, Gpa, RamBlock, RamLayout
from sealift.cli.recipes import make_recipe
from sealift.errors import StreamError
from sealift.launch import bzimage, flash, guided, secrets, startup
from sealift.owner import authority, files, receipts, secretfiles
from sealift.owner.authority import OwnerAuthority
from sealift.pageset import PageSet
from sealift.sev import ghcb, keys, secret
from sealift.sev.ca import CaCertificate, decode_ca_chain
from sealift.sev.certfile import CertificateSet
from sealift.sev.certificate import Certificate
from sealift.sev.packet import Header
from sealift.sev.policy import parse_policy
from sealift.sev.report import AttestationReport
from sealift.sev.secret import SecretEntry
from sealift.sev.session import Session
from sealift.sev.text import raw_or_base64
from sealift.silicon.processor.platformkeys import PlatformKeys
from sealift.wire import (
    handover,
    handshake,
    inquiry,
    leg,
    psp,
    qemu_stream,
    receipt,
    record,
    resume,
    side_connection,
    snapshot_file,
)
from sealift.wire.handshake import Hello, MessageKind, Party
from sealift.wire.token import TOKEN_SIZE

_RESUME = resume.ResumeRequest(bytes(16), bytes(16), bytes(48), bytes(48))
_VECTORS = Path(__file__).parents[1] / "vectors" / "sev"


@dataclass(frozen=True)
class Parser:
    """One parser and what it is begun with."""

    parse: Callable[[bytes], object]
    seeds: tuple[bytes, ...] = ()


def _vectors(name: str, field: str) -> tuple[bytes, ...]:
    return tuple({bytes.fromhex(vector[field]) for vector in json.loads((_VECTORS / f"{name}.json").read_text())})


def _taking(read: Callable[[Callable[[int], bytes]], object]) -> Callable[[bytes], object]:
    """A reader of streams as a parser of bytes."""

    def parse(data: bytes) -> object:
        place = 0

        def take(count: int) -> bytes:
            nonlocal place
            if place + count > len(data):
                raise StreamError("the stream is truncated")
            place += count
            return data[place - count : place]

        return read(take)

    return parse


def _ghcb(data: bytes) -> object:
    page = ghcb.Ghcb.from_buffer_copy(data[:4096].ljust(4096, b"\0"))
    return ghcb.decode(page, 0x820000)


def _stream(take: Callable[[int], bytes]) -> None:
    qemu_stream.read_front(take)
    while (section := qemu_stream.read_section(take)) is not None:
        qemu_stream.read_footer(take, section)
    qemu_stream.read_description(take)


def _receipt(data: bytes) -> None:
    found = receipts.read_receipt(data)
    for half in (found.source, found.target):
        if half is not None:
            half.encode()


_STATED = receipt.Statement(receipt.Side.SOURCE, *4 * ("00" * 16,), 1, 2, 3, "00" * 32, "00" * 32)
_OCA = OwnerAuthority.generate()
_KEYS = PlatformKeys.generate(keys.generate(), (1, 55))
_SHARED = PageSet.of(4096, np.array([1, 2, 9], np.uint64))
_LAYOUT = RamLayout((RamBlock("ram", Gpa(0), 16 << 20),))
_PARTY = Party(bytes(16), bytes(48), bytes(32), 1, 51, 1, 1, Gpa(0x820000), _LAYOUT, (0x820, 0x821))
_TABLE = secret.build_table([SecretEntry(secrets.GUEST_GUID, b"of the guest")])
_PIECES = [piece.data for piece in make_recipe(16 << 20, 1, "ledger", None, "every=4").pieces()]
_GREETING = handover.Hello("mh", "guest", 1, handover.blocks_of(_LAYOUT), handover.Hardware("bare", 47, b""), b"offer")


def _ca(bits: int) -> bytes:
    """A CA certificate without numbers."""
    head = b"\1\0\0\0" + bytes(32) + b"\x13\0\0\0" + bytes(16) + 2 * bits.to_bytes(4, "little")
    return head + bytes(3 * bits // 8)


def _frame(kind: handover.FrameKind) -> bytes:
    return handover.Frame(kind, bytes(16)).encode()


PARSERS: dict[str, Parser] = {
    "certificate": Parser(Certificate.decode, _vectors("report", "pek")),
    "certificate file": Parser(CertificateSet.decode, _vectors("report", "pek")),
    "CA certificate": Parser(CaCertificate.decode, (_ca(2048), _ca(4096))),
    "CA chain": Parser(decode_ca_chain, (2 * _ca(2048), 2 * _ca(4096))),
    "session": Parser(Session.decode, _vectors("session", "session")),
    "packet header": Parser(Header.decode, _vectors("packet", "header")),
    "attestation report": Parser(AttestationReport.decode, _vectors("report", "report")),
    "secret table": Parser(secret.parse_table, (_TABLE,)),
    "migration secret": Parser(
        secrets.MigrationSecret.decode, (secrets.MigrationSecret(bytes(16), b"\1" * 32, b"\2" * 32).encode(),)
    ),
    "text of a blob": Parser(lambda data: raw_or_base64(data, {48, 128}), (b"A" * 64, b"AAAA\n" * 16)),
    "QMP's answer": Parser(
        lambda data: files._data_of(data, {48}), (b'{"data": "AAAA"}', b'{"return": {"data": "AAAA"}, "id": "1"}')
    ),
    "secret's header": Parser(secretfiles._header, (bytes(52), b"A" * 72)),
    "secret's payload": Parser(secretfiles._payload, (bytes(64), b"A" * 64)),
    "owner's certificate": Parser(authority._certificate, (_OCA.certificate.encode(),)),
    "owner's private key": Parser(authority._private_key, (_OCA.files(Path("c"), Path("k"))[0].data, b"-----BEGIN")),
    "platform's keys": Parser(PlatformKeys.decode, (_KEYS.encode(),)),
    "policy": Parser(lambda data: parse_policy(data.decode("latin-1")), (b"es,nodbg,api=1.55", b"0x5")),
    "GHCB": Parser(_ghcb, (bytes(4096), b"\xff" * 4096)),
    "GUIDed table": Parser(guided.parse, tuple(data[-4096:] for data in _PIECES)),
    "firmware image": Parser(flash.FlashImage.decode, tuple(data[-4096:] for data in _PIECES)),
    "start-up table": Parser(startup.StartupTable.decode, tuple(data for data in _PIECES if len(data) == PAGE_SIZE)),
    "bzImage": Parser(bzimage.parse, (a_bzimage(),)),
    "QEMU stream": Parser(_taking(_stream), (qemu_stream.encode_front(),)),
    "QEMU block list": Parser(_taking(qemu_stream.read_block_list)),
    "hello": Parser(handover.Hello.decode, (_GREETING.encode(),)),
    "handler's offer": Parser(handover.HandlerOffer.decode),
    "refusal": Parser(handover.Refusal.decode, (handover.Refusal.of(StreamError("x"), b"token").frame().payload,)),
    "frame": Parser(_taking(handover.read_frame), tuple(_frame(kind) for kind in handover.FrameKind)),
    "question": Parser(_taking(inquiry.read_question)),
    "side connection": Parser(side_connection.SideFront.decode),
    "OFFER": Parser(handshake.decode_offer, (Hello(MessageKind.OFFER, bytes(16), _PARTY).encode(),)),
    "ANSWER": Parser(handshake.decode_answer, (Hello(MessageKind.ANSWER, bytes(16), _PARTY).encode() + bytes(32),)),
    "CONFIRM": Parser(handshake.decode_confirm, (handshake.Confirm(bytes(16), bytes(32)).encode(),)),
    "SNAPSHOT": Parser(handshake.decode_snapshot, (Hello(MessageKind.SNAPSHOT, bytes(16), _PARTY).encode(),)),
    "record header": Parser(
        record.RecordHeader.decode,
        (record.RecordHeader(record.RecordKind.PAGES, 1, 0, 1, 0, bytes(16), 1, 4096).encode(),),
    ),
    "state piece": Parser(record.StatePiece.decode, (record.StatePiece(8, 0, bytes(4)).encode(),)),
    "close record": Parser(record.decode_close, (record.encode_close((record.ChannelEnd(3, b"\1" * 32),)),)),
    "receipt": Parser(_receipt, (msgspec.json.encode(receipt.Receipt(_STATED, _STATED)), b"{}")),
    "statement": Parser(receipt.Statement.decode, (bytes(receipt.STATEMENT_SIZE),)),
    "snapshot's end": Parser(snapshot_file.decode_end, (snapshot_file.encode_end(bytes(TOKEN_SIZE)),)),
    "resume request": Parser(resume.split_request, (_RESUME.body() + bytes(resume.MAC_SIZE),)),
    "leg request": Parser(leg.split_leg_request, (leg.LegRequest(bytes(16), 2, 3, bytes(32)).body() + bytes(32),)),
    "leg answer": Parser(leg.split_leg_answer, (leg.LegAnswer(bytes(16), 2, bytes(32), (1, 2)).body() + bytes(32),)),
    "psp record": Parser(psp.RecordFront.decode, (psp.RecordFront(psp.RecordKind.DATA, 1).encode(),)),
    "psp packet": Parser(psp.PacketParts.decode),
    "psp offer": Parser(psp.Offer.decode, (psp.Offer(33).encode(),)),
    "psp answer": Parser(psp.Answer.decode, (psp.Answer(b"pdh", b"certs", b"ca").encode(),)),
    "psp regions": Parser(lambda data: psp.add_regions(PageSet(4096), data), tuple(psp.encode_regions(_SHARED))),
    "psp machine": Parser(psp.VmRecord.decode, (psp.VmRecord("unicorn", b"state").encode(),)),
    "psp confirm": Parser(psp.Confirm.decode, (psp.Confirm(1, bytes(2084), bytes(128)).encode(),)),
}


def _trap(data: bytes) -> None:
    """The control: a parser with a mistake that only who follows the branches finds."""
    if data[:1] == b"S" and data[1:2] == b"L" and data[2:3] == b"I" and data[3:4] == b"Q":
        raise IndexError("a mistake")


TRAP = Parser(_trap)
