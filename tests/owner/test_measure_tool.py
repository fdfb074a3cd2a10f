"""``sealift owner measure`` and ``validate``: options, mistakes, and the sentence for a measurement that differs."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
from pathlib import Path
from typing import Any

import pytest

from launch.flashes import firmware_image
from owner.tool import Answer, owner
from sealift.cli.recipes import make_recipe
from sealift.sev.policy import parse_policy
from sealift.sev.vmsa import CPU_SIGNATURES, RESET_EIP, FpuProfile, reset_vmsa

VERSION = ("--api", "1.55", "--build", "25")
NONCE = "4fbe0bedbad6c86ae8f68971d103e554"


@pytest.fixture
def firmware(tmp_path: Path) -> Path:
    path = tmp_path / "firmware.fd"
    path.write_bytes(firmware_image())
    return path


@pytest.fixture
def keys(tmp_path: Path) -> tuple[str | Path, ...]:
    for name in ("tik", "tek"):
        (tmp_path / name).write_bytes(os.urandom(16))
    return ("--tik", tmp_path / "tik", "--tek", tmp_path / "tek")


def measured(*words: Any) -> str:
    return owner("measure", *words, *VERSION, "--nonce", NONCE).out.strip()


def validate(*words: Any, status: int = 0) -> Answer:
    return owner("validate", *words, *VERSION, status=status)


@pytest.mark.parametrize("policy", ["nodbg,nosend", "nodbg,nosend,es"])
def test_our_own_guest_is_the_one_the_owner_process_expects(policy: str) -> None:
    words = ("--kernel", "idle", "--memory", "32M", "--vcpus", "3", "--append", "ws=4", "--policy", policy)
    recipe = make_recipe(32 << 20, 3, "idle", None, "ws=4").under(parse_policy(policy))
    assert owner("measure", *words).out.strip() == recipe.launch_digest().hex()
    *pieces, _ = owner("measure", *words, "--pieces").out.splitlines()
    assert sum(piece.startswith("VMSA of vCPU") for piece in pieces) == (3 if "es" in policy else 0)


def test_a_whole_measurement(tmp_path: Path) -> None:
    """Test the whole LAUNCH_MEASURE output against the message written out here."""
    (tmp_path / "tk").write_bytes(bytes(16) + bytes.fromhex("66320db73158a35a255d051758e95ed4"))
    (tmp_path / "image").write_bytes(bytes(16))
    words = ("--firmware", tmp_path / "image", "--policy", "0", "--tk", tmp_path / "tk", "--nonce", NONCE)
    found = owner("measure", *words, "--api", "0.18", "--build", "15", "--json")
    answer = json.loads(found.out)
    digest = hashlib.sha256(bytes(16)).digest()
    message = bytes.fromhex("0400120f00000000") + digest + bytes.fromhex(NONCE)
    expected = hmac.new(bytes.fromhex("66320db73158a35a255d051758e95ed4"), message, hashlib.sha256).digest()
    assert base64.b64decode(answer["measurement"]) == expected + bytes.fromhex(NONCE)
    assert answer["digest"] == digest.hex()


def test_vmsa_files_stand_for_computed_ones(firmware: Path, tmp_path: Path) -> None:
    first = reset_vmsa(RESET_EIP, CPU_SIGNATURES["EPYC-Rome"], FpuProfile.LEGACY)
    other = reset_vmsa(0x0080B004, CPU_SIGNATURES["EPYC-Rome"], FpuProfile.LEGACY)
    for name, page in (("cpu0", first), ("cpu1", other)):
        (tmp_path / name).write_bytes(page)
    common = ("measure", "--firmware", firmware, "--policy", "es", "--vcpus", "4")
    files = owner(*common, "--vmsa-cpu0", tmp_path / "cpu0", "--vmsa-cpu1", tmp_path / "cpu1").out
    assert files == owner(*common, "--vcpu-type", "EPYC-Rome", "--fpu", "legacy").out


@pytest.mark.parametrize(
    ("fpu", "mxcsr", "fcw", "ioctl"),
    [("init2", 0x1F80, 0x37F, "KVM_SEV_INIT2"), ("legacy", 0, 0, "KVM_SEV_ES_INIT")],
)
def test_either_fpu_profile_is_measured_and_said(firmware: Path, fpu: str, mxcsr: int, fcw: int, ioctl: str) -> None:
    """Test the two profiles by the bytes in which they differ, and that the answer records which one it is of."""
    page = bytearray(reset_vmsa(RESET_EIP, CPU_SIGNATURES["EPYC-v4"], FpuProfile.INIT2))
    page[0x408:0x40C], page[0x410:0x412] = mxcsr.to_bytes(4, "little"), fcw.to_bytes(2, "little")
    digest = hashlib.sha256(firmware.read_bytes() + page).hexdigest()
    words = ("measure", "--firmware", firmware, "--policy", "es", "--vcpus", "1", "--fpu", fpu)
    assert f"VMSA of vCPU 0 ({fpu})" in owner(*words, "--pieces").out
    answer = json.loads(owner(*words, "--json").out)
    assert answer["digest"] == digest
    assert answer["vcpus"]["fpu"] == fpu
    assert answer["vcpus"]["fpu-made-by"].startswith(ioctl)


def test_sev_features_are_measured(firmware: Path, tmp_path: Path) -> None:
    page = tmp_path / "cpu0"
    page.write_bytes(reset_vmsa(RESET_EIP, CPU_SIGNATURES["EPYC-v4"], FpuProfile.INIT2, 0x20))
    common = ("measure", "--firmware", firmware, "--policy", "es", "--vcpus", "1")
    assert owner(*common, "--sev-features", "0x20").out == owner(*common, "--vmsa-cpu0", page).out


def test_a_measurement_can_be_a_file_in_any_form(firmware: Path, keys: tuple[str | Path, ...], tmp_path: Path) -> None:
    text = measured("--firmware", firmware, *keys)
    raw, armored = tmp_path / "measure.bin", tmp_path / "measure.b64"
    raw.write_bytes(base64.b64decode(text))
    armored.write_text(f"{text}\n")
    answer, reply = tmp_path / "answer.json", tmp_path / "reply.json"
    answer.write_text(json.dumps({"data": text}))
    reply.write_text(json.dumps({"return": {"data": text}, "id": "libvirt-1"}))
    for form in (text, raw, armored, answer, reply):
        assert validate("--measurement", form, "--firmware", firmware, *keys).out.startswith(
            "OK: the guest is the expected one, policy 0x9 (nodbg,nosend)"
        )


def test_what_differs_is_said_and_the_status_is_1(firmware: Path, keys: tuple[str | Path, ...]) -> None:
    text = measured("--firmware", firmware, *keys, "--policy", "es", "--vcpus", "4", "--fpu", "legacy")
    words = ("--measurement", text, "--firmware", firmware, *keys, "--policy", "es", "--vcpus", "4")
    answer = validate(*words, status=1)
    assert answer.out == ""
    assert answer.complaint == (
        "sealift: the measurement is NOT the expected one: it is exactly the one with "
        "FPU profile legacy instead of init2"
    )
    found = json.loads(validate(*words, "--json", status=1).out)
    assert found == {"matches": False, "would-match-with": [["FPU profile legacy instead of init2"]]}
    assert json.loads(validate(*words, "--fpu", "legacy", "--json").out)["matches"] is True


def test_what_nothing_explains_is_said_to_be_so(firmware: Path, keys: tuple[str | Path, ...]) -> None:
    noise = base64.b64encode(os.urandom(48)).decode()
    answer = validate("--measurement", noise, "--firmware", firmware, *keys, status=1)
    assert "no change of one or two inputs that was tried gives it" in answer.complaint


def test_our_own_guests_command_line_is_explained(keys: tuple[str | Path, ...]) -> None:
    own = ("--kernel", "idle", "--memory", "32M", "--vcpus", "2")
    text = measured(*own, *keys, "--append", "ws=4 ")
    answer = validate("--measurement", text, *own, *keys, "--append", "ws=4", status=1)
    assert "it is exactly the one with a command line that ends with a blank" in answer.complaint


@pytest.mark.parametrize(
    ("words", "status", "reason"),
    [
        (["--firmware", "/nonexistent"], 1, "the firmware /nonexistent cannot be read"),
        (["--firmware", "BROKEN"], 1, "BROKEN does not parse: 17 bytes are no firmware image"),
        (["--firmware", "FIRMWARE", "--memory", "1G"], 2, "--memory has no use with --firmware"),
        (["--firmware", "FIRMWARE", "--append", "quiet"], 2, "--append goes with --kernel"),
        (["--firmware", "FIRMWARE", "--vcpus", "2"], 2, "--vcpus is measured of an SEV-ES guest alone"),
        (["--firmware", "FIRMWARE", "--kernel", "/nonexistent"], 1, "the kernel /nonexistent cannot be read"),
        (["--firmware", "PLAIN", "--kernel", "FIRMWARE"], 1, "this firmware has no place for kernel hashes"),
        (["--firmware", "PLAIN", "--policy", "es", "--vcpus", "2"], 1, "no SEV-ES reset block"),
        (["--firmware", "FIRMWARE", "--policy", "es", "--vcpus", "513"], 1, "at most 512 vCPUs, not 513"),
        (["--firmware", "FIRMWARE", "--policy", "es", "--vcpu-type", "386"], 1, "there is no vCPU type '386'"),
        (["--firmware", "FIRMWARE", "--policy", "es", "--vcpu-signature", "x"], 1, "'x' is no vCPU signature"),
        (["--firmware", "FIRMWARE", "--policy", "es", "--sev-features", "-1"], 1, "'-1' is no SEV_FEATURES"),
        (
            ["--firmware", "FIRMWARE", "--policy", "es", "--vcpu-signature", "1", "--vcpu-type", "EPYC"],
            2,
            "say the same",
        ),
        (["--firmware", "FIRMWARE", "--policy", "es", "--vmsa-cpu1", "PLAIN"], 2, "goes with --vmsa-cpu0"),
        (["--firmware", "FIRMWARE", "--policy", "es", "--vmsa-cpu0", "PLAIN"], 2, "--vmsa-cpu1 is needed too"),
        (
            ["--firmware", "FIRMWARE", "--policy", "es", "--vcpus", "1", "--vmsa-cpu0", "BROKEN"],
            1,
            "BROKEN does not parse: a VMSA has 4096 bytes, not 17",
        ),
        (
            ["--firmware", "FIRMWARE", "--policy", "es", "--vcpus", "1", "--vmsa-cpu0", "PLAIN", "--fpu", "legacy"],
            2,
            "--fpu has no use with --vmsa-cpu0",
        ),
        (["--fpu", "legacy"], 2, "--fpu has no use without --firmware"),
        (["--policy", "what"], 1, "is no guest policy"),
        (["--nonce", NONCE], 2, "a whole measurement needs a session's keys"),
        (["--api", "1.55"], 2, "--api and --build go with a session's keys"),
        (["--tk", "KEYS", "--nonce", NONCE], 2, "say --api MAJOR.MINOR and --build N"),
        (["--tk", "KEYS", "--nonce", NONCE, "--api", "1", "--build", "2"], 2, "'1' is no version"),
        (["--tk", "KEYS", "--nonce", NONCE, "--api", "1.256", "--build", "2"], 2, "'1.256' is no version"),
        (["--tk", "KEYS", "--nonce", "abc", *VERSION], 1, "the nonce 'abc' is neither 16 bytes"),
        (["--tk", "BROKEN", "--nonce", NONCE, *VERSION], 1, "BROKEN does not parse: 32 bytes or base64 text"),
        (["--tk", "KEYS", "--tik", "KEYS"], 2, "--tk holds both keys"),
        (["--tik", "KEYS"], 2, "--tik and --tek go together"),
    ],
)
def test_mistakes_are_sentences(
    firmware: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    status: int,
    reason: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    firmware.rename("FIRMWARE")
    for name, content in (("BROKEN", bytes(17)), ("PLAIN", bytes(4096)), ("KEYS", os.urandom(32))):
        Path(name).write_bytes(content)
    answer = owner("measure", *words, status=status)
    assert reason in answer.complaint
    assert answer.out == ""


@pytest.mark.parametrize(
    ("words", "status", "reason"),
    [
        (["--measurement", "YWJj", "--tk", "KEYS", *VERSION], 1, "the measurement 'YWJj' is neither 48 bytes"),
        (["--measurement", "YWJj"], 2, "the session's keys are needed"),
        (["--tk", "KEYS"], 2, "--measurement"),
        (["--measurement", "ANSWER", "--tk", "KEYS", *VERSION], 1, "looks like QMP's answer, but has no data"),
        (["--measurement", "KEYS", "--tk", "KEYS", *VERSION], 1, "the measurement KEYS does not parse"),
    ],
)
def test_mistakes_of_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], status: int, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("KEYS").write_bytes(os.urandom(32))
    Path("ANSWER").write_text('{"error": {}}')
    assert reason in owner("validate", *words, status=status).complaint
