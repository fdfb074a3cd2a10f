"""Linux finds every table, and ACPICA, which it reads them with, has nothing to say against them."""

from __future__ import annotations

import re
import struct
import subprocess
from pathlib import Path

import pytest

import judges
from sealift.address import Gpa
from sealift.launch import acpi, aml, microvm

BASE = Gpa(microvm.ACPI_TABLES)


class Tables:
    """The tables as a guest walks them, from the RSDP on."""

    def __init__(self, vcpus: int = 3) -> None:
        self.image = acpi.tables(BASE, vcpus)
        (self.xsdt_at,) = struct.unpack_from("<Q", self.image, 24)
        xsdt = self.at(self.xsdt_at)
        pointers = struct.unpack(f"<{(len(xsdt) - 36) // 8}Q", xsdt[36:])
        self.found = {"XSDT": xsdt} | {self.at(pointer)[:4].decode(): self.at(pointer) for pointer in pointers}
        fadt = self.found["FACP"]
        self.facs_at, dsdt = struct.unpack_from("<II", fadt, 36)
        assert struct.unpack_from("<Q", fadt, 140) == (dsdt,)
        self.found |= {"FACS": self.at(self.facs_at), "DSDT": self.at(dsdt)}

    def at(self, address: int) -> bytes:
        """The table at an address."""
        offset = address - BASE
        (size,) = struct.unpack_from("<I", self.image, offset + 4)
        assert 0 < offset + size <= len(self.image)
        return self.image[offset : offset + size]


def test_every_table_is_reached_from_the_rsdp_and_sums_up_to_0() -> None:
    tables = Tables()
    assert set(tables.found) == {"XSDT", "FACP", "APIC", "FACS", "DSDT"}
    rsdp = tables.image[:36]
    assert rsdp.startswith(b"RSD PTR ")
    assert (sum(rsdp[:20]) & 0xFF, sum(rsdp) & 0xFF, rsdp[15]) == (0, 0, 2)
    assert all(sum(table) & 0xFF == 0 for name, table in tables.found.items() if name != "FACS")
    assert tables.facs_at % 64 == 0


@pytest.mark.parametrize("vcpus", [1, 255])
def test_there_is_a_local_apic_for_every_vcpu_and_for_nobody_else(vcpus: int) -> None:
    madt = Tables(vcpus).found["APIC"]
    at, apics = 44, []
    while at < len(madt):
        kind, size = madt[at], madt[at + 1]
        if kind == 0:
            apics.append(struct.unpack_from("<BBI", madt, at + 2))
        at += size
    assert at == len(madt)
    assert apics == [(vcpu, vcpu, 1) for vcpu in range(vcpus)]


def test_the_largest_tables_fit_their_area() -> None:
    assert len(acpi.tables(BASE, 255)) <= microvm.ACPI_TABLES_END - microvm.ACPI_TABLES


@pytest.fixture
def iasl(tmp_path: Path) -> Path:
    """A directory with the tables as files."""
    for name, table in Tables().found.items():
        (tmp_path / f"{name}.dat").write_bytes(table)
    return tmp_path


def run_iasl(directory: Path, *arguments: str) -> str:
    """What it says, if it is content."""
    program = judges.program("iasl", "acpica-tools")
    done = subprocess.run([program, *arguments], cwd=directory, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert not re.search(r"\b[1-9]\d* (Errors|Warnings)", said), said
    assert not re.search(r"(?i)(?<!0 )error|(?<!0 )warning|invalid|unknown|incorrect", said), said
    return said


@pytest.mark.parametrize("name", ["XSDT", "FACP", "APIC", "FACS", "DSDT"])
def test_acpica_disassembles_every_table_without_a_complaint(iasl: Path, name: str) -> None:
    run_iasl(iasl, "-d", f"{name}.dat")
    assert not re.search(r"(?i)error|warning|invalid|unknown", (iasl / f"{name}.dsl").read_text())


def test_acpica_compiles_what_it_disassembled(iasl: Path) -> None:
    run_iasl(iasl, "-d", "DSDT.dat")
    assert "0 Errors, 0 Warnings, 0 Remarks" in run_iasl(iasl, "DSDT.dsl")


def test_the_devices_are_where_the_machine_has_them(iasl: Path) -> None:
    run_iasl(iasl, "-d", "DSDT.dat")
    text = (iasl / "DSDT.dsl").read_text()
    assert re.findall(r'EisaId \("(\w+)"\)', text) == ["PNP0501", "PNP0B00"]
    assert text.count('Name (_HID, "LNRO0005")') == microvm.VIRTIO_SLOTS
    assert re.findall(r"0x(\w+), +// Address Base", text) == ["FEB00000", "FEB00200", "FEB00400", "FEB00600"]
    interrupts = re.findall(r"Interrupt \(ResourceConsumer, Edge, ActiveHigh, Exclusive.*\n\s+\{\n\s+0x(\w+),", text)
    assert [int(gsi, 16) for gsi in interrupts] == [16, 17, 18, 19]


def test_the_fixed_hardware_is_said_to_be_what_the_machine_has(iasl: Path) -> None:
    run_iasl(iasl, "-d", "FACP.dat")
    fields = dict(re.findall(r"\] +(\S.*?) : ([0-9A-F]+)$", (iasl / "FACP.dsl").read_text(), re.M))
    flags = dict(re.findall(r"^ +(\S.*?) : ([01])$", (iasl / "FACP.dsl").read_text(), re.M))
    assert fields["SCI Interrupt"] == "0009"
    assert fields["PM1A Event Block Address"] == "00000600"
    assert fields["PM1A Control Block Address"] == "00000604"
    assert fields["Value to cause reset"] == "FE"
    assert flags["Hardware Reduced (V5)"] == "0"
    assert flags["8042 Present on ports 60/64 (V2)"] == "0"
    assert flags["CMOS RTC Not Present (V5)"] == "0"
    assert flags["Reset Register Supported (V2)"] == "1"


@pytest.mark.parametrize("size", [0, 61, 62, 63, 64, 4090, 4096, 70_000])
def test_package_lengths_count_themselves_in_as_few_bytes_as_do(size: int) -> None:
    encoded = aml.scope("\\_SB", bytes(size))
    lead, more = encoded[1], encoded[1] >> 6
    length = lead & 0x3F if more == 0 else lead & 0xF | int.from_bytes(encoded[2 : 2 + more], "little") << 4
    assert length == len(encoded) - 1
    assert more == next(n for n, limit in enumerate((1 << 6, 1 << 12, 1 << 20)) if 1 + n + 5 + size < limit)


def test_integers_take_the_shortest_form() -> None:
    assert [aml.integer(value).hex() for value in (0, 1, 2, 256, 1 << 16, 1 << 32)] == [
        "00", "01", "0a02", "0b0001", "0c00000100", "0e0000000001000000",
    ]  # fmt: skip
