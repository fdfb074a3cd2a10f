"""``sealift owner sign``: files that are made, and made whole."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from owner.tool import owner
from sealift.owner.authority import OwnerAuthority
from sealift.sev import keys
from sealift.sev.certificate import Certificate, Usage
from sealift.sev.keys import Algorithm


@pytest.fixture
def request_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What PEK_CSR gives, in the test's own directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "pek_csr.cert"
    path.write_bytes(Certificate.of(Usage.PEK, Algorithm.ECDSA_SHA256, keys.generate().public_key(), (1, 55)).encode())
    return path


def test_a_fresh_owner_signs_and_is_kept(request_file: Path) -> None:
    owner("sign", request_file, "pek.cert", "--generate", "oca")
    authority = OwnerAuthority.read(Path("oca.cert"), Path("oca.key"))
    signed = Certificate.decode(Path("pek.cert").read_bytes())
    assert signed.verifies(Usage.OCA, authority.certificate.key())
    assert signed.unsigned().encode() == request_file.read_bytes()
    assert stat.S_IMODE(Path("oca.key").stat().st_mode) == 0o600
    before = signed.encode()
    again = owner("sign", request_file, "pek.cert", "--oca", "oca.cert", "oca.key", status=1)
    assert "pek.cert exists already" in again.complaint
    owner("sign", request_file, "pek.cert", "--oca", "oca.cert", "oca.key", "--force")
    assert Path("pek.cert").read_bytes()[:1044] == before[:1044]


def test_nothing_is_made_if_one_file_cannot_be(request_file: Path) -> None:
    Path("oca.cert").touch()
    words = ("sign", request_file, "pek.cert", "--generate", "oca")
    for force in ([], ["--force"]):
        assert "oca.cert exists already, and may be an owner's" in owner(*words, *force, status=1).complaint
    assert not Path("pek.cert").exists()
    assert not Path("oca.key").exists()


@pytest.mark.parametrize("words", [[], ["--generate", "oca", "--oca", "a", "b"]])
def test_there_is_one_owner(request_file: Path, words: list[str]) -> None:
    assert "--oca CERT KEY, or" in owner("sign", request_file, "pek.cert", *words, status=2).complaint
