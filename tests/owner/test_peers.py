"""Other projects' tools as judges of the owner's: sev-snp-measure, and libvirt's validator."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import judges
from launch.flashes import BLOCKS, OVMF, with_blocks
from owner.conftest import Host
from owner.tool import owner
from sealift.address import Gpa, RamBlock, RamLayout
from sealift.sev.policy import DEFAULT_POLICY
from sealift.silicon.memory.guest_memory import GuestMemory
from sealift.silicon.processor.asids import fitting
from sev.test_peers import MISMATCH, validator

IMAGES = (OVMF, Path("/usr/share/OVMF/OVMF_CODE_4M.fd"), Path("/usr/share/ovmf/OVMF.fd"))
VERSION = ("--api", "1.55", "--build", "25")


@pytest.fixture(params=IMAGES, ids=lambda path: path.name)
def firmware(request: pytest.FixtureRequest) -> Path:
    return judges.file(request.param, "ovmf")


@pytest.fixture
def amd_sev(firmware: Path, tmp_path: Path) -> Path:
    """Debian's image with the table that EDK2's AmdSev build has, since Debian builds none."""
    path = tmp_path / "AMDSEV.fd"
    path.write_bytes(with_blocks(firmware.read_bytes(), BLOCKS))
    return path


@pytest.fixture
def kernel_files(tmp_path: Path) -> tuple[Path, Path]:
    kernel, initrd = tmp_path / "vmlinuz", tmp_path / "initrd"
    kernel.write_bytes(os.urandom(100_000))
    initrd.write_bytes(os.urandom(200_000))
    return kernel, initrd


def theirs(*words: str | Path | int) -> str:
    """What sev-snp-measure says."""
    command = [sys.executable, "-c", "from sevsnpmeasure.cli import main; main()", *map(str, words)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_an_sev_digest_is_theirs(firmware: Path) -> None:
    assert owner("measure", "--firmware", firmware).out.strip() == theirs("--mode", "sev", "--ovmf", firmware)


@pytest.mark.parametrize("cpu", ["EPYC-v4", "EPYC-Rome", "EPYC-Milan-v2", "EPYC-Genoa", "EPYC-Turin"])
@pytest.mark.parametrize("vcpus", [1, 2, 7])
def test_an_sev_es_digest_is_theirs(firmware: Path, cpu: str, vcpus: int) -> None:
    own = owner("measure", "--firmware", firmware, "--policy", "es", "--vcpus", vcpus, "--vcpu-type", cpu).out
    assert own.strip() == theirs("--mode", "seves", "--ovmf", firmware, "--vcpus", vcpus, "--vcpu-type", cpu)


def test_a_vcpu_signature_is_theirs(firmware: Path) -> None:
    own = owner("measure", "--firmware", firmware, "--policy", "es", "--vcpu-signature", "0x830f10", "--vcpus", 2).out
    words = ("--mode", "seves", "--ovmf", firmware, "--vcpus", 2, "--vcpu-sig", "0x830f10")
    assert own.strip() == theirs(*words)


@pytest.mark.parametrize("with_initrd", [True, False])
@pytest.mark.parametrize("line", ["", "console=ttyS0 root=/dev/vda"])
@pytest.mark.parametrize("mode", ["sev", "seves"])
def test_kernel_hashes_are_theirs(
    amd_sev: Path, kernel_files: tuple[Path, Path], mode: str, line: str, *, with_initrd: bool
) -> None:
    kernel, initrd = kernel_files
    common: list[str | Path] = ["--kernel", kernel, "--append", line, *(("--initrd", initrd) if with_initrd else ())]
    es: list[str | Path] = ["--policy", "es", "--vcpus", "2"] if mode == "seves" else []
    own = owner("measure", "--firmware", amd_sev, *common, *es).out
    theirs_es = ["--vcpus", "2", "--vcpu-type", "EPYC-v4"] if es else []
    assert own.strip() == theirs("--mode", mode, "--ovmf", amd_sev, *common, *theirs_es)


def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "tk.bin"
    path.write_bytes(os.urandom(32))
    return path


def libvirt(*words: str | Path | int) -> subprocess.CompletedProcess[str]:
    numbers = ("--api-major", 1, "--api-minor", 55, "--build-id", 25)
    command = [*validator(), *map(str, (*numbers, *words))]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("policy", [1, 9])
def test_libvirt_takes_our_measurement_and_no_other_policys(
    amd_sev: Path, kernel_files: tuple[Path, Path], tmp_path: Path, policy: int
) -> None:
    kernel, initrd = kernel_files
    tk = key_file(tmp_path)
    image = ("--kernel", kernel, "--initrd", initrd)
    made = owner(
        *("measure", "--firmware", amd_sev, *image, "--append", "quiet", "--policy", policy),
        *("--tk", tk, *VERSION, "--nonce", os.urandom(16).hex()),
    ).out.strip()
    words = ("--measurement", made, "--firmware", amd_sev, *image, "--cmdline", "quiet", "--tk", tk)
    assert libvirt(*words, "--policy", policy).returncode == 0
    assert libvirt(*words, "--policy", policy ^ 8).returncode == MISMATCH


def test_libvirt_takes_our_sev_es_measurement(firmware: Path, tmp_path: Path) -> None:
    """Test the legacy FPU profile, the only one libvirt 9.0 knows."""
    tk = key_file(tmp_path)
    made = owner(
        *("measure", "--firmware", firmware, "--policy", 5, "--vcpus", 3, "--fpu", "legacy"),
        *("--tk", tk, *VERSION, "--nonce", os.urandom(16).hex()),
    ).out.strip()
    cpu = ("--cpu-family", 23, "--cpu-model", 1, "--cpu-stepping", 2)
    words = ("--measurement", made, "--firmware", firmware, "--tk", tk, "--policy", 5, *cpu)
    assert libvirt(*words, "--num-cpus", 3).returncode == 0
    assert libvirt(*words, "--num-cpus", 4).returncode == MISMATCH


@pytest.mark.parametrize("data", [b"correct horse", b"on block"], ids=len)
def test_we_validate_what_libvirt_would_and_open_its_secret(firmware: Path, tmp_path: Path, data: bytes) -> None:
    """Test a table that ends within a block and one that ends on one, behind which libvirt adds a whole block."""
    tk, passphrase = key_file(tmp_path), tmp_path / "passphrase"
    passphrase.write_bytes(data)
    made = owner("measure", "--firmware", firmware, "--tk", tk, *VERSION, "--nonce", os.urandom(16).hex()).out.strip()
    header, payload = tmp_path / "header.b64", tmp_path / "payload.b64"
    secret = ("--inject-secret", f"luks-key:{passphrase}", "--secret-header", header, "--secret-payload", payload)
    done = libvirt("--measurement", made, "--firmware", firmware, "--tk", tk, "--policy", 9, *secret)
    assert done.returncode == 0, done.stderr
    assert owner("validate", "--measurement", made, "--firmware", firmware, "--tk", tk, *VERSION).out.startswith("OK")
    listed = owner("secret", "--open", header, payload, "--measurement", made, "--tk", tk).out
    assert listed.splitlines()[1].split() == ["luks-key", str(len(data))]


def test_firmware_takes_the_secret_that_libvirt_seals(
    firmware: Path, make_host: Callable[[str], Host], tmp_path: Path
) -> None:
    """Test a whole launch whose owner is libvirt's validator, but for the session."""
    processor, pdh = make_host("a").processor, tmp_path / "pdh.cert"
    pdh.write_bytes(processor.endorsed_certificates().pdh)
    owner("session", pdh, "--unverified", "--format", "sev-tool", "--directory", tmp_path)
    image = firmware.read_bytes()
    memory = GuestMemory(RamLayout((RamBlock("ram", Gpa(0), 8 << 20),)), bytes(32))
    godh, session = ((tmp_path / name).read_bytes() for name in ("godh.cert", "launch_blob.bin"))
    handle = processor.launch_start(memory, DEFAULT_POLICY, godh, session)
    processor.activate(handle, fitting(DEFAULT_POLICY).start)
    memory.shared.data[: len(image)] = image
    processor.launch_update_data(handle, 0, len(image))
    measured = base64.b64encode(processor.launch_measure(handle)).decode()
    (tmp_path / "passphrase").write_bytes(b"correct horse")
    parts = [tmp_path / "header.b64", tmp_path / "payload.b64"]
    done = libvirt(
        *("--measurement", measured, "--firmware", firmware, "--tk", tmp_path / "tmp_tk.bin"),
        *("--policy", int(DEFAULT_POLICY), "--inject-secret", f"luks-key:{tmp_path / 'passphrase'}"),
        *("--secret-header", parts[0], "--secret-payload", parts[1]),
    )
    assert done.returncode == 0, done.stderr
    header, payload = (base64.b64decode(part.read_text()) for part in parts)
    processor.launch_secret(handle, header, payload, 4 << 20, len(payload))
    assert b"correct horse" in bytes(memory.read_private(Gpa(4 << 20), len(payload)))


@pytest.mark.parametrize("size", [8, 13, 24])
def test_our_secret_has_the_form_of_libvirts(tmp_path: Path, size: int) -> None:
    tk, passphrase = key_file(tmp_path), tmp_path / "passphrase"
    passphrase.write_bytes(os.urandom(size))
    made = base64.b64encode(os.urandom(48)).decode()
    words = (f"luks-key:{passphrase}", "--measurement", made, "--tk", tk, "--format", "libvirt")
    owner("secret", *words, "--directory", tmp_path)
    texts = [(tmp_path / f"secret_{part}.b64").read_text() for part in ("header", "payload")]
    header, payload = (base64.b64decode(text, validate=True) for text in texts)
    assert len(header) == 52
    assert len(payload) == -(-(40 + size) // 16) * 16
