"""``sealift owner report``: whose report it is, of which guest, in both encodings of its signature."""

from __future__ import annotations

import base64
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from owner.tool import owner
from sealift.sev.policy import DEFAULT_POLICY
from sealift.sev.report import AttestationReport, Encoding
from sev.conftest import Platform, make_platform, make_root

NONCE, DIGEST = os.urandom(16), os.urandom(32)


@pytest.fixture(scope="module")
def made() -> Platform:
    return make_platform(make_root(2048))


@pytest.fixture
def genuine(made: Platform) -> AttestationReport:
    return AttestationReport(NONCE, DIGEST, DEFAULT_POLICY).signed(made.pek)


@pytest.fixture
def chain(made: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str | Path, ...]:
    """Options for the platform's chain and its root."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    path, whole = tmp_path / "chain.cert", made.chain
    certificates = (whole.pdh, whole.pek, whole.oca, whole.cek, whole.ask, whole.ark)
    path.write_bytes(b"".join(certificate.encode() for certificate in certificates))
    return ("--chain", path, "--trust", whole.ark.fingerprint().hex())


def text(report: AttestationReport) -> str:
    return base64.b64encode(report.encode()).decode()


def test_a_genuine_report_of_the_expected_guest(
    genuine: AttestationReport, chain: tuple[str | Path, ...], tmp_path: Path
) -> None:
    expected = ("--nonce", NONCE.hex(), "--digest", DIGEST.hex(), "--policy", "nodbg,nosend")
    answer = owner("report", text(genuine), *chain, *expected)
    assert answer.out.splitlines() == [
        f"nonce          {NONCE.hex()}",
        f"launch digest  {DIGEST.hex()}",
        "policy         0x9 (nodbg,nosend)",
        "signature      r || s, little-endian",
        "OK: signed by the platform's PEK",
    ]
    (tmp_path / "report.bin").write_bytes(genuine.encode())
    found = json.loads(owner("report", tmp_path / "report.bin", *chain, "--json").out)
    assert found["launch-digest"] == DIGEST.hex()


@pytest.mark.parametrize("to", Encoding)
@pytest.mark.parametrize("given", Encoding)
def test_a_report_is_read_and_written_in_both_encodings(
    genuine: AttestationReport, chain: tuple[str | Path, ...], tmp_path: Path, given: Encoding, to: Encoding
) -> None:
    output = tmp_path / "report"
    words = ("--output", output, "--encoding", to.name.lower())
    answer = owner("report", text(genuine.written_as(given)), *chain, *words)
    assert f"signature      {given.value}" in answer.out
    assert output.read_bytes() == genuine.written_as(to).encode()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--nonce", bytes(16).hex()), f"its nonce is {NONCE.hex()}, not {bytes(16).hex()}"),
        (("--digest", bytes(32).hex()), f"its launch digest is {DIGEST.hex()}, not"),
        (("--policy", "nodbg"), "its policy is 0x9 (nodbg,nosend), not 0x1 (nodbg)"),
    ],
    ids=["nonce", "digest", "policy"],
)
def test_what_is_not_expected_is_named(
    genuine: AttestationReport, chain: tuple[str | Path, ...], words: tuple[str, str], reason: str
) -> None:
    answer = owner("report", text(genuine), *chain, *words, status=1)
    assert "the report is not the expected one" in answer.complaint
    assert reason in answer.complaint
    assert "OK" not in answer.out


@pytest.mark.parametrize("offset", [0, 16, 47, 48, 0x40, 0x88])
def test_an_altered_report_is_refused(genuine: AttestationReport, chain: tuple[str | Path, ...], offset: int) -> None:
    data = bytearray(genuine.encode())
    data[offset] ^= 1
    answer = owner("report", base64.b64encode(data).decode(), *chain, status=1)
    assert "no valid signature of this PEK" in answer.complaint


def test_another_platforms_report_is_refused(made: Platform, chain: tuple[str | Path, ...]) -> None:
    forged = AttestationReport(NONCE, DIGEST, DEFAULT_POLICY).signed(made.pdh)
    assert "another platform's, or altered" in owner("report", text(forged), *chain, status=1).complaint
    renamed = replace(forged, usage=0x1003)
    assert "a key of usage 0x1003 signed it" in owner("report", text(renamed), *chain, status=1).complaint


def test_a_pek_that_nothing_proves_needs_a_word(genuine: AttestationReport, chain: tuple[str | Path, ...]) -> None:
    alone = chain[:2]
    assert "not one that is trusted here" in owner("report", text(genuine), *alone, status=1).complaint
    assert "WARNING" in owner("report", text(genuine), *alone, "--unverified").complaint


@pytest.mark.parametrize(
    ("words", "status", "reason"),
    [
        (["YWJj"], 1, "the report 'YWJj' is neither 208 bytes"),
        (["/dev/null"], 1, "the report /dev/null is no regular file"),
        (["REPORT", "--nonce", "1234"], 1, "the nonce '1234' is neither 16 bytes"),
        (["REPORT", "--policy", "x"], 1, "is no guest policy"),
        (["REPORT", "--output", "REPORT"], 1, "REPORT exists already"),
    ],
)
def test_mistakes_are_sentences(
    genuine: AttestationReport,
    chain: tuple[str | Path, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    status: int,
    reason: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("REPORT").write_bytes(genuine.encode())
    assert reason in owner("report", *words, *chain, status=status).complaint
