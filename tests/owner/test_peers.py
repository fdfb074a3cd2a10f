"""Other projects' tools as judges of the owner's: sev-snp-measure, and libvirt's validator."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.flashes import BLOCKS, OVMF, with_blocks
from owner.tool import owner
from sev.test_peers import MISMATCH, validator

IMAGES = (OVMF, Path("/usr/share/OVMF/OVMF_CODE_4M.fd"), Path("/usr/share/ovmf/OVMF.fd"))
VERSION = ("--api", "1.55", "--build", "25")


@pytest.fixture(params=IMAGES, ids=lambda path: path.name)
def firmware(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    if not path.exists():
        pytest.skip(f"there is no firmware image at {path}: install ovmf")
    return path


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


def test_we_validate_what_libvirt_would_and_open_its_secret(firmware: Path, tmp_path: Path) -> None:
    tk, passphrase = key_file(tmp_path), tmp_path / "passphrase"
    passphrase.write_bytes(b"correct horse")
    made = owner("measure", "--firmware", firmware, "--tk", tk, *VERSION, "--nonce", os.urandom(16).hex()).out.strip()
    header, payload = tmp_path / "header.b64", tmp_path / "payload.b64"
    secret = ("--inject-secret", f"luks-key:{passphrase}", "--secret-header", header, "--secret-payload", payload)
    done = libvirt("--measurement", made, "--firmware", firmware, "--tk", tk, "--policy", 9, *secret)
    assert done.returncode == 0, done.stderr
    assert owner("validate", "--measurement", made, "--firmware", firmware, "--tk", tk, *VERSION).out.startswith("OK")
    listed = owner("secret", "--open", header, payload, "--measurement", made, "--tk", tk).out
    assert listed.splitlines()[1].split() == ["luks-key", "13"]


def test_our_secret_has_the_form_of_libvirts(firmware: Path, tmp_path: Path) -> None:
    """Test sizes, encoding, and the table with another padding convention: libvirt adds a whole block when aligned."""
    tk, passphrase = key_file(tmp_path), tmp_path / "passphrase"
    made = base64.b64encode(os.urandom(48)).decode()
    for size in (8, 13, 24):
        passphrase.write_bytes(os.urandom(size))
        owner(
            *("secret", f"luks-key:{passphrase}", "--measurement", made, "--tk", tk),
            *("--format", "libvirt", "--directory", tmp_path, "--force"),
        )
        header, payload = (base64.b64decode((tmp_path / f"secret_{name}.b64").read_text()) for name in _PARTS)
        assert len(header) == 52
        assert len(payload) == -(-(40 + size) // 16) * 16
    assert firmware.exists()


_PARTS = ("header", "payload")
