"""``sealift owner chain``: reads every layout, says which link fails, and trusts nobody by itself."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path

import pytest

from owner.tool import owner
from sealift.cli.places import default_host, default_manufacturer, default_owner
from sealift.owner.owner import Owner
from sealift.sev.ca import AMD_KEY_IDS
from sealift.sev.certfile import CertificateSet, Layout
from sealift.sev.chain import PlatformChain
from sealift.silicon.processor.manufacturer import Manufacturer
from sev.conftest import Platform, make_platform, make_root


@pytest.fixture(scope="module")
def made() -> Platform:
    return make_platform(make_root(2048))


@pytest.fixture(autouse=True)
def _no_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def certificates(chain: PlatformChain) -> CertificateSet:
    return CertificateSet.of((chain.pdh, chain.pek, chain.oca, chain.cek, chain.ask, chain.ark))


def file(tmp_path: Path, chain: PlatformChain, layout: Layout = Layout.FULL) -> Path:
    path = tmp_path / f"{layout.value}.cert"
    path.write_bytes(certificates(chain).encode(layout))
    return path


def trust(made: Platform) -> tuple[str, str]:
    return "--trust", made.chain.ark.fingerprint().hex()


def test_a_genuine_chain_under_a_trusted_root(made: Platform, tmp_path: Path) -> None:
    answer = owner("chain", file(tmp_path, made.chain), *trust(made))
    heading, *rows, root, verdict = answer.out.splitlines()
    assert heading.split() == ["CERTIFICATE", "KEY", "API", "FINGERPRINT", "SIGNED", "BY"]
    assert [row.split()[0] for row in rows] == ["PDH", "PEK", "OCA", "CEK", "ASK", "ARK"]
    assert "OCA (valid), CEK (valid)" in rows[1]
    assert root.startswith(f"root {made.chain.ark.fingerprint().hex()}")
    assert verdict.startswith("genuine")


def test_a_root_can_be_trusted_by_its_file(made: Platform, tmp_path: Path) -> None:
    chain = file(tmp_path, made.chain)
    owner("chain", chain, "--trust", file(tmp_path, made.chain, Layout.CA))
    stranger = tmp_path / "stranger.cert"
    stranger.write_bytes(make_root(2048).ark.encode())
    assert "not one that is trusted here" in owner("chain", chain, "--trust", stranger, status=1).complaint
    pdh = file(tmp_path, made.chain, Layout.PDH)
    assert "holds no ARK" in owner("chain", chain, "--trust", pdh, status=1).complaint


def test_an_unknown_root_is_said_to_be_unknown(made: Platform, tmp_path: Path) -> None:
    answer = owner("chain", file(tmp_path, made.chain), status=1)
    assert "of an unknown manufacturer, and not one that is trusted here" in answer.complaint
    assert f"--trust {made.chain.ark.fingerprint().hex()}" in answer.complaint
    assert "genuine" not in answer.out


def test_amds_name_on_a_root_is_not_taken_for_amds_root(made: Platform, tmp_path: Path) -> None:
    milan = next(key_id for key_id, name in AMD_KEY_IDS.items() if name == "Milan")
    forged = replace(made.chain, ark=replace(made.chain.ark, key_id=milan))
    answer = owner("chain", file(tmp_path, forged), *trust(made), status=1)
    assert "AMD's Milan root, which anybody can write" in answer.complaint


def test_the_failing_link_is_named_and_shown(made: Platform, tmp_path: Path) -> None:
    stranger = make_platform(make_root(2048)).chain
    forged = replace(made.chain, cek=stranger.cek)
    answer = owner("chain", file(tmp_path, forged), *trust(made), status=1)
    assert "the PEK carries no valid signature of the CEK; the CEK carries no valid signature of the ASK" in (
        answer.complaint
    )
    assert "OCA (valid), CEK (INVALID)" in answer.out


def test_a_cek_as_firmware_exports_it_is_explained(made: Platform, tmp_path: Path) -> None:
    exported = replace(made.chain, cek=made.chain.cek.unsigned())
    answer = owner("chain", file(tmp_path, exported), *trust(made), status=1)
    assert "the CEK is unsigned, as firmware exports it" in answer.complaint
    assert "nobody" in answer.out


def test_parts_in_several_files_make_a_chain(made: Platform, tmp_path: Path) -> None:
    parts = [file(tmp_path, made.chain, layout) for layout in (Layout.PDH, Layout.CERT_CHAIN)]
    incomplete = owner("chain", *parts, *trust(made), status=1)
    assert "the manufacturer's certificates (ASK and ARK) are missing: give them with --ca" in incomplete.complaint
    owner("chain", *parts, "--ca", file(tmp_path, made.chain, Layout.CA), *trust(made))


def test_a_manufacturers_file_is_judged_alone(made: Platform, tmp_path: Path) -> None:
    owner("chain", file(tmp_path, made.chain, Layout.CA), *trust(made))


def test_a_pdh_alone_proves_nothing_but_can_be_read(made: Platform, tmp_path: Path) -> None:
    path = file(tmp_path, made.chain, Layout.PDH)
    assert "the chain is incomplete: PEK, OCA, CEK, ASK and ARK are missing" in (
        owner("chain", path, status=1).complaint
    )
    answer = owner("chain", path, "--unverified")
    assert "PEK (not here)" in answer.out
    assert "WARNING" in answer.complaint


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("text", [False, True])
def test_every_layout_can_be_written(made: Platform, tmp_path: Path, layout: Layout, *, text: bool) -> None:
    output = tmp_path / "output"
    words = ["--output", output, "--layout", layout.value, *(["--base64"] if text else [])]
    owner("chain", file(tmp_path, made.chain), *trust(made), *words)
    written = output.read_bytes()
    assert (base64.b64decode(written) if text else written) == certificates(made.chain).encode(layout)
    assert "exists already" in owner("chain", file(tmp_path, made.chain), *trust(made), *words, status=1).complaint


def test_a_program_gets_the_same_as_json(made: Platform, tmp_path: Path) -> None:
    answer = owner("chain", file(tmp_path, made.chain), "--json", status=1)
    found = json.loads(answer.out)
    assert found["layout"] == "full"
    assert found["root"]["fingerprint"] == made.chain.ark.fingerprint().hex()
    assert (found["genuine"], len(found["faults"])) == (False, 1)
    assert all(link["valid"] for link in found["links"])
    assert json.loads(owner("chain", file(tmp_path, made.chain), *trust(made), "--json").out)["genuine"] is True


def test_the_local_host_is_clearly_not_amds_and_trusted_once_pinned(state_dir: Path) -> None:
    answer = owner("chain", "--host", status=1)
    assert "a Sealift manufacturer's, not AMD's, and not one that is trusted here" in answer.complaint
    Owner(default_owner()).trust(Manufacturer(default_manufacturer()).ark.encode())
    assert owner("chain", "--host").out.splitlines()[-1].startswith("genuine")
    assert owner("chain", "--host", default_host().path).status == 0
    assert state_dir.exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "there is no certificate in it"),
        (b"no certificate", "no certificate can be read at byte 0: 14 bytes are too few"),
        (bytes(2084), "no certificate can be read at byte 0: version 0 with usage 0x0"),
        (b"\x01" + bytes(7) + b"\x03\x10" + bytes(100), "an SEV certificate has 2084 bytes, not 110"),
    ],
)
def test_what_is_no_certificate_is_named_with_its_file(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "some.cert"
    path.write_bytes(content)
    answer = owner("chain", path, status=1)
    assert f"the certificate file {path} does not parse: " in answer.complaint
    assert reason in answer.complaint
    assert answer.out == ""


@pytest.mark.parametrize(
    ("words", "status", "reason"),
    [
        ([], 2, "give files of certificates, or --host"),
        (["/nonexistent"], 1, "the certificate file /nonexistent cannot be read"),
        (["/dev/zero"], 1, "is no regular file"),
        (["pdh.cert", "--host"], 2, "or --host"),
    ],
)
def test_mistakes_are_sentences(words: list[str], status: int, reason: str) -> None:
    assert reason in owner("chain", *words, status=status).complaint


def test_files_of_two_platforms_are_not_mixed(made: Platform, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger.cert"
    stranger.write_bytes(make_platform(make_root(2048)).chain.pdh.encode())
    complaint = owner("chain", file(tmp_path, made.chain), stranger, status=1).complaint
    assert f"the certificate file {stranger} and the others are not of one platform: there are two PDH" in complaint
