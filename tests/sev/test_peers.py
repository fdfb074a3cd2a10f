"""Another project's tool as judge: libvirt's validator."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

import judges
from sealift.sev import measurement, secret
from sealift.sev.measurement import FirmwareVersion
from sealift.sev.policy import DEFAULT_POLICY
from sealift.sev.secret import LUKS_KEY_GUID, SecretEntry
from sealift.sev.session import TransportKeys

VERSION = FirmwareVersion(1, 55, 25)
OVMF = Path("/usr/share/OVMF/OVMF_CODE.fd")
MISMATCH = 1
"""The validator's exit code for a measurement that is not the expected one."""


def validator() -> list[str]:
    """The command of libvirt's validator; it runs under the system's Python, where its libraries are."""
    command = ["/usr/bin/python3", judges.program("virt-qemu-sev-validate", "libvirt-clients-qemu")]
    tried = subprocess.run([*command, "--help"], capture_output=True, text=True, check=False)
    if tried.returncode:
        judges.missing(f"virt-qemu-sev-validate does not run (Debian: python3-lxml, python3-libvirt): {tried.stderr}")
    return command


@pytest.fixture
def firmware() -> Path:
    return judges.file(OVMF, "ovmf")


@dataclass(frozen=True)
class Launch:
    """One launch as an owner knows it."""

    transport: TransportKeys
    measure: bytes
    key_file: Path


@pytest.fixture
def launch(firmware: Path, tmp_path: Path) -> Launch:
    transport = TransportKeys.fresh()
    digest = hashlib.sha256(firmware.read_bytes()).digest()
    output = measurement.measure(transport.tik, VERSION, DEFAULT_POLICY, digest, os.urandom(16))
    key_file = tmp_path / "tk.bin"
    key_file.write_bytes(transport.tek + transport.tik)
    return Launch(transport, output, key_file)


def _validate(launch: Launch, firmware: Path, *more: str) -> subprocess.CompletedProcess[str]:
    numbers = {
        "--measurement": base64.b64encode(launch.measure).decode(),
        "--api-major": VERSION.api_major,
        "--api-minor": VERSION.api_minor,
        "--build-id": VERSION.build_id,
        "--policy": int(DEFAULT_POLICY),
        "--firmware": firmware,
        "--tk": launch.key_file,
    }
    arguments = [str(word) for pair in numbers.items() for word in pair]
    return subprocess.run([*validator(), *arguments, *more], capture_output=True, text=True, check=False, timeout=60)


def test_libvirt_takes_our_measurement(launch: Launch, firmware: Path) -> None:
    done = _validate(launch, firmware)
    assert done.returncode == 0, done.stderr


def test_libvirt_refuses_our_measurement_of_something_else(launch: Launch, firmware: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.fd"
    other.write_bytes(firmware.read_bytes()[:-1] + b"\xff")
    assert _validate(launch, other).returncode == MISMATCH


def test_we_open_the_secret_libvirt_makes(launch: Launch, firmware: Path, tmp_path: Path) -> None:
    """Test packet and table against libvirt's, for data that ends on a block and data that does not."""
    for data in (b"correct horse", b"twelve bytes"):
        paths = {name: tmp_path / name for name in ("data", "header", "payload")}
        paths["data"].write_bytes(data)
        inject = ("--inject-secret", f"luks-key:{paths['data']}")
        files = ("--secret-header", str(paths["header"]), "--secret-payload", str(paths["payload"]))
        done = _validate(launch, firmware, *inject, *files)
        assert done.returncode == 0, done.stderr
        header, payload = (base64.b64decode(paths[name].read_text()) for name in ("header", "payload"))
        table = secret.open_packet(launch.transport, launch.measure, header, payload)
        entries = secret.parse_table(table)
        assert entries == [SecretEntry(LUKS_KEY_GUID, data)]
        assert table.startswith(secret.build_table(entries))
