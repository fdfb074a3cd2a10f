"""The ACPI tables of the machine `microvm`: what Linux cannot find out by looking.

::

    RSDP ── XSDT ─┬─ FADT ─┬─ FACS
                  │        └─ DSDT   serial port, clock, virtio slots, S5
                  └─ MADT            a local APIC for every vCPU, the I/O APIC

The migration handler is no processor here, so that no guest ever schedules on it. The hardware is that of a PC, not
"hardware-reduced": timer, clock and interrupt controllers are where they have always been. Interrupts follow KVM's
default routing, in which the timer's is pin 0 of the I/O APIC; so there is no override for it, unlike on most PCs.

Source: ACPI 6.5, chapters 4.8 (fixed hardware) and 5.2 (tables).
"""

from __future__ import annotations

import struct
from typing import Final

from sealift.address import Gpa
from sealift.launch import aml, microvm
from sealift.launch.fields import Field

_OEM: Final = b"SEALFT"
_OEM_TABLE: Final = b"SEALIFT "
_CREATOR: Final = b"SLFT"
_REVISION: Final = 1

_HEADER: Final = struct.Struct("<4sIBB6s8sI4sI")
_CHECKSUM_AT: Final = 9
_RSDP: Final = struct.Struct("<8sB6sBIIQB3x")
_RSDP_V1_SIZE: Final = 20
_RSDP_CHECKSUM_AT, _RSDP_EXTENDED_CHECKSUM_AT = 8, 32
_FACS: Final = struct.Struct("<4sIIIIIQB31x")
_ALIGNMENT: Final = 64
"""What the FACS needs."""

_ADDRESS: Final = struct.Struct("<BBBBQ")
_SYSTEM_IO: Final = 1
_ACCESS: Final = {1: 1, 2: 2, 4: 3}
"""Access sizes of a generic address by bytes."""

# The FADT (table 5.9): only what is not 0 has a name here.
_FADT_SIZE: Final = 276
_FADT_FACS: Final = Field(36, 4)
_FADT_DSDT: Final = Field(40, 4)
_FADT_SCI: Final = Field(46, 2)
_FADT_PM1A_EVENT: Final = Field(56, 4)
_FADT_PM1A_CONTROL: Final = Field(64, 4)
_FADT_PM1_EVENT_LENGTH: Final = Field(88, 1)
_FADT_PM1_CONTROL_LENGTH: Final = Field(89, 1)
_FADT_C2_LATENCY: Final = Field(96, 2)
_FADT_C3_LATENCY: Final = Field(98, 2)
_FADT_BOOT_ARCHITECTURE: Final = Field(109, 2)
_FADT_FLAGS: Final = Field(112, 4)
_FADT_RESET_REGISTER: Final = 116
_FADT_RESET_VALUE: Final = Field(128, 1)
_FADT_MINOR: Final = Field(131, 1)
_FADT_X_DSDT: Final = Field(140, 8)
_FADT_X_PM1A_EVENT: Final = 148
_FADT_X_PM1A_CONTROL: Final = 172
_MAJOR, _MINOR = 6, 5

_PM_EVENT_SIZE, _PM_CONTROL_SIZE = 4, 2
_NO_C2, _NO_C3 = 101, 1001
"""Latencies beyond what counts as supported (µs)."""

_LEGACY_DEVICES, _VGA_NOT_PRESENT, _MSI_NOT_SUPPORTED, _NO_ASPM = 1 << 0, 1 << 2, 1 << 3, 1 << 4
"""Boot architecture flags (table 5.11). Not set: an 8042 keyboard controller; that the clock is missing."""
_WBINVD, _PROC_C1, _SLEEP_BUTTON_IS_NO_FIXED, _RTC_WAKES_NOT, _RESET_REGISTER = 1 << 0, 1 << 2, 1 << 5, 1 << 6, 1 << 10
"""Feature flags (table 5.10). Not set: hardware-reduced; that the power button is none of the fixed hardware."""

_PCAT_COMPATIBLE: Final = 1
_LOCAL_APIC: Final = struct.Struct("<BBBBI")
_IO_APIC: Final = struct.Struct("<BBBBII")
_OVERRIDE: Final = struct.Struct("<BBBBIH")
_LOCAL_NMI: Final = struct.Struct("<BBBHB")
_ISA: Final = 0
_ENABLED: Final = 1
_ACTIVE_HIGH, _LEVEL = 0b01, 0b11 << 2
_ALL_PROCESSORS, _LINT_1 = 0xFF, 1

_RTC_PORTS: Final = 2


def tables(base: Gpa, vcpus: int) -> bytes:
    """All tables for `vcpus` vCPUs, to be loaded at `base`, where the RSDP is.

    Args:
        base: aligned to 64 bytes, below 4 GiB.
        vcpus: up to 255.
    """
    image = bytearray(_aligned(_RSDP.size))

    def add(table: bytes) -> int:
        """Append a table; its address."""
        address = base + len(image)
        image.extend(table.ljust(_aligned(len(table)), b"\0"))
        return address

    facs = add(_facs())
    dsdt = add(_dsdt())
    entries = (add(_fadt(facs, dsdt)), add(_madt(vcpus)))
    xsdt = add(_table(b"XSDT", 1, struct.pack(f"<{len(entries)}Q", *entries)))
    image[: _RSDP.size] = _rsdp(xsdt)
    return bytes(image)


def _rsdp(xsdt: int) -> bytes:
    rsdp = bytearray(_RSDP.pack(b"RSD PTR ", 0, _OEM, 2, 0, _RSDP.size, xsdt, 0))
    rsdp[_RSDP_CHECKSUM_AT] = -sum(rsdp[:_RSDP_V1_SIZE]) & 0xFF
    rsdp[_RSDP_EXTENDED_CHECKSUM_AT] = -sum(rsdp) & 0xFF
    return bytes(rsdp)


def _facs() -> bytes:
    return _FACS.pack(b"FACS", _FACS.size, 0, 0, 0, 0, 0, 2)


def _fadt(facs: int, dsdt: int) -> bytes:
    page = bytearray(_FADT_SIZE)
    for field, value in (
        (_FADT_FACS, facs),
        (_FADT_DSDT, dsdt),
        (_FADT_SCI, microvm.PM_GSI),
        (_FADT_PM1A_EVENT, microvm.PM_EVENT_PORT),
        (_FADT_PM1A_CONTROL, microvm.PM_CONTROL_PORT),
        (_FADT_PM1_EVENT_LENGTH, _PM_EVENT_SIZE),
        (_FADT_PM1_CONTROL_LENGTH, _PM_CONTROL_SIZE),
        (_FADT_C2_LATENCY, _NO_C2),
        (_FADT_C3_LATENCY, _NO_C3),
        (_FADT_BOOT_ARCHITECTURE, _LEGACY_DEVICES | _VGA_NOT_PRESENT | _MSI_NOT_SUPPORTED | _NO_ASPM),
        (_FADT_FLAGS, _WBINVD | _PROC_C1 | _SLEEP_BUTTON_IS_NO_FIXED | _RTC_WAKES_NOT | _RESET_REGISTER),
        (_FADT_RESET_VALUE, microvm.RESET_VALUE),
        (_FADT_MINOR, _MINOR),
        (_FADT_X_DSDT, dsdt),
    ):
        field.write(page, value)
    for at, port, size, access in (
        (_FADT_RESET_REGISTER, microvm.KEYBOARD_COMMAND_PORT, 1, 1),
        (_FADT_X_PM1A_EVENT, microvm.PM_EVENT_PORT, _PM_EVENT_SIZE, 2),
        (_FADT_X_PM1A_CONTROL, microvm.PM_CONTROL_PORT, _PM_CONTROL_SIZE, 2),
    ):
        _ADDRESS.pack_into(page, at, _SYSTEM_IO, size * 8, 0, _ACCESS[access], port)
    return _table(b"FACP", _MAJOR, bytes(page[_HEADER.size :]))


def _madt(vcpus: int) -> bytes:
    apics = [_LOCAL_APIC.pack(0, _LOCAL_APIC.size, vcpu, vcpu, _ENABLED) for vcpu in range(vcpus)]
    content = (
        struct.pack("<II", microvm.LOCAL_APIC, _PCAT_COMPATIBLE),
        *apics,
        _IO_APIC.pack(1, _IO_APIC.size, 0, 0, microvm.IO_APIC, 0),
        _OVERRIDE.pack(2, _OVERRIDE.size, _ISA, microvm.PM_GSI, microvm.PM_GSI, _ACTIVE_HIGH | _LEVEL),
        _LOCAL_NMI.pack(4, _LOCAL_NMI.size, _ALL_PROCESSORS, 0, _LINT_1),
    )
    return _table(b"APIC", 5, b"".join(content))


def _dsdt() -> bytes:
    off = aml.integer(microvm.SLEEP_TYPE_OFF)
    devices = (_serial(), _clock(), *(_virtio(slot) for slot in range(microvm.VIRTIO_SLOTS)))
    terms = (aml.name("\\_S5", aml.package(off, off, aml.integer(0), aml.integer(0))), aml.scope("\\_SB", *devices))
    return _table(b"DSDT", 2, b"".join(terms))


def _serial() -> bytes:
    return aml.device(
        "COM1",
        aml.name("_HID", aml.eisa_id("PNP0501")),
        aml.name("_UID", aml.integer(0)),
        aml.name("_CRS", aml.resources(aml.io_ports(microvm.SERIAL_PORT, 8), aml.isa_interrupt(microvm.SERIAL_GSI))),
    )


def _clock() -> bytes:
    return aml.device(
        "RTC",
        aml.name("_HID", aml.eisa_id("PNP0B00")),
        aml.name("_CRS", aml.resources(aml.io_ports(microvm.RTC_PORT, _RTC_PORTS), aml.isa_interrupt(microvm.RTC_GSI))),
    )


def _virtio(slot: int) -> bytes:
    window = aml.memory(microvm.VIRTIO_BASE + slot * microvm.VIRTIO_STRIDE, microvm.VIRTIO_STRIDE)
    return aml.device(
        f"VR{slot:02}",
        aml.name("_HID", aml.string("LNRO0005")),
        aml.name("_UID", aml.integer(slot)),
        aml.name("_CCA", aml.integer(1)),
        aml.name("_CRS", aml.resources(window, aml.edge_interrupt(microvm.VIRTIO_FIRST_GSI + slot))),
    )


def _table(signature: bytes, revision: int, content: bytes) -> bytes:
    """A table with its header and checksum."""
    size = _HEADER.size + len(content)
    header = _HEADER.pack(signature, size, revision, 0, _OEM, _OEM_TABLE, _REVISION, _CREATOR, _REVISION)
    table = bytearray(header + content)
    table[_CHECKSUM_AT] = -sum(table) & 0xFF
    return bytes(table)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
