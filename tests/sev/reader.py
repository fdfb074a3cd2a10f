"""A second reader of certificates: fields by the offsets of the SEV API's tables, signatures by OpenSSL's command line.

It shares no code with Sealift. A chain is judged the way a tool of somebody else's would: whatever is not zero where
the tables say zero, or not signed by whom it says, is an `AssertionError` that names it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from . import independent

ARK, ASK, NONE, OCA, PEK, PDH, CEK = 0x0000, 0x0013, 0x1000, 0x1001, 0x1002, 0x1003, 0x1004
RSA_SHA256, ECDSA_SHA256, ECDH_SHA256, RSA_SHA384 = 0x001, 0x002, 0x003, 0x101

SEV_SIZE, SEV_SIGNED = 2084, 1044
CA_FRONT = 64


def number(data: bytes, start: int, size: int) -> int:
    """A little-endian number in a field."""
    return int.from_bytes(data[start : start + size], "little")


@dataclass(frozen=True)
class Slot:
    """A signature slot of an SEV certificate: whose, by which algorithm, and 512 bytes."""

    usage: int
    algorithm: int
    data: bytes


@dataclass(frozen=True)
class SevCertificate:
    """CEK, OCA, PEK or PDH."""

    usage: int
    algorithm: int
    api: tuple[int, int]
    signed: bytes
    slots: tuple[Slot, Slot]
    pem: bytes

    @classmethod
    def read(cls, data: bytes) -> SevCertificate:
        """Read 2084 bytes."""
        assert len(data) == SEV_SIZE
        assert number(data, 0x000, 4) == 1, "version"
        assert number(data, 0x006, 2) == 0, "reserved"
        assert not any(data[0xA4:0x414]), "the rest of the key's field"
        slots = [Slot(number(data, at, 4), number(data, at + 4, 4), data[at + 8 : at + 520]) for at in (0x414, 0x61C)]
        pem = independent.public_pem(independent.certified_point(data))
        api = data[0x004], data[0x005]
        return cls(number(data, 0x008, 4), number(data, 0x00C, 4), api, data[:SEV_SIGNED], (slots[0], slots[1]), pem)

    def slot_of(self, signer: int) -> Slot:
        """The one slot of a signer."""
        (found,) = (slot for slot in self.slots if slot.usage == signer)
        return found

    def empty_slots(self) -> int:
        """Slots that nobody signed."""
        empty = [slot for slot in self.slots if (slot.usage, slot.algorithm) == (NONE, 0)]
        assert not any(any(slot.data) for slot in empty), "an empty slot holds zeros"
        return len(empty)


@dataclass(frozen=True)
class CaCertificate:
    """ASK or ARK."""

    usage: int
    key_id: bytes
    certifying_id: bytes
    bits: int
    signed: bytes
    signature: bytes
    pem: bytes

    @classmethod
    def read(cls, data: bytes) -> CaCertificate:
        """Read 832 or 1600 bytes."""
        bits, size = number(data, 60, 4), number(data, 60, 4) // 8
        assert number(data, 0, 4) == 1, "version"
        assert not any(data[40:56]), "reserved"
        assert number(data, 56, 4) == bits
        assert len(data) == CA_FRONT + 3 * size == {2048: 832, 4096: 1600}[bits]
        exponent, modulus = number(data, CA_FRONT, size), number(data, CA_FRONT + size, size)
        assert exponent == 65537
        assert modulus.bit_length() == bits
        signed = data[: CA_FRONT + 2 * size]
        pem = independent.rsa_public_pem(modulus, exponent)
        return cls(number(data, 36, 4), data[4:20], data[20:36], bits, signed, data[len(signed) :], pem)


def ec_signed(subject: SevCertificate, signer: int, key: bytes, directory: Path) -> bool:
    """Whether OpenSSL finds `subject` signed by an EC key, in the slot of `signer`."""
    slot = subject.slot_of(signer)
    assert slot.algorithm == ECDSA_SHA256
    assert not any(slot.data[144:]), "the rest of the signature's field"
    signature = independent.signature_der(number(slot.data, 0, 72), number(slot.data, 72, 72))
    return independent.openssl_verifies(directory, "sha256", key, subject.signed, signature)


def rsa_signed(signed: bytes, signature: bytes, bits: int, key: bytes, directory: Path) -> bool:
    """Whether OpenSSL finds bytes signed by an RSA key: PSS with a salt as long as the digest, little-endian."""
    digest = {2048: "sha256", 4096: "sha384"}[bits]
    pss = ("rsa_padding_mode:pss", "rsa_pss_saltlen:digest", f"rsa_mgf1_md:{digest}")
    options = [word for option in pss for word in ("-sigopt", option)]
    return independent.openssl_verifies(directory, digest, key, signed, signature[::-1], *options)


def cek_signed(cek: SevCertificate, ask: CaCertificate, directory: Path) -> bool:
    """Whether OpenSSL finds the CEK signed by the ASK."""
    slot = cek.slot_of(ASK)
    assert slot.algorithm == {2048: RSA_SHA256, 4096: RSA_SHA384}[ask.bits]
    size = ask.bits // 8
    assert not any(slot.data[size:]), "the rest of the signature's field"
    return rsa_signed(cek.signed, slot.data[:size], ask.bits, ask.pem, directory)
