"""``sealift platform``: what its administrator may do with a host's secure processor, and what not while guests run."""

from __future__ import annotations

import base64
import json
import os
import pty
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from absent import AbsentOwner
from cli.test_commands import SMALL, answer, running
from cli.test_mistakes import assert_nothing_is_left
from harness import Sealift
from owner.tool import owner
from sealift.cli.places import Host, Places
from sealift.owner.authority import OwnerAuthority
from sealift.owner.files import write
from sealift.sev.certfile import CertificateSet, Layout
from sealift.sev.certificate import Usage


def status(sealift: Callable[..., Sealift], *options: str | Path) -> Any:
    return json.loads(answer(sealift, "platform", "status", "--json", *options))


def complaint(sealift: Callable[..., Sealift], *arguments: str | Path, status: int = 1) -> str:
    """The last sentence of a command that fails."""
    process = sealift(*arguments)
    assert process.wait() == status, process.report()
    assert "Traceback" not in process.stderr.text
    return process.stderr.text.splitlines()[-1]


def exported(sealift: Callable[..., Sealift], path: Path, *options: str) -> CertificateSet:
    answer(sealift, "platform", "export", path, *options)
    return CertificateSet.decode(path.read_bytes())


def test_status_tells_the_firmware_the_owner_and_the_guests_of_the_host(
    sealift: Callable[..., Sealift], state_dir: Path
) -> None:
    before = status(sealift)
    assert (before["api-major"], before["api-minor"], before["build-id"]) == (1, 55, 25)
    assert (before["state"], before["owner"], before["guests"]) == ("initialized", "self", [])
    running(sealift, "a", *SMALL)
    during = status(sealift)
    assert during == before | {"state": "working", "guests": ["a"]}
    shown = answer(sealift, "platform", "status")
    assert "API 1.55, build 25" in shown
    assert "the platform itself" in shown
    assert answer(sealift, "platform", "id") == before["id"] + "\n"
    answer(sealift, "stop", "a")
    assert_nothing_is_left(state_dir)


def test_a_guest_that_is_only_awaited_does_not_keep_the_keys(sealift: Callable[..., Sealift]) -> None:
    process = sealift("run", "--name", "a", "--incoming", "tcp:127.0.0.1:0")
    process.stderr.wait_for("waiting for a guest")
    found = status(sealift)
    assert (found["state"], found["guests"]) == ("initialized", ["a"])
    answer(sealift, "platform", "rotate")


def test_the_id_is_upper_case_hexadecimal_and_another_hosts_is_another(
    sealift: Callable[..., Sealift], other_host: Host
) -> None:
    here, there = (answer(sealift, "platform", "id", *host) for host in ((), ("--host", other_host.path)))
    assert len(here.strip()) == len(there.strip()) == 128
    assert here == here.upper()
    assert here != there
    assert here == answer(sealift, "platform", "id")


def test_export_has_every_layout_and_a_complete_chain_that_verifies(
    sealift: Callable[..., Sealift], tmp_path: Path
) -> None:
    full = exported(sealift, tmp_path / "whole", "--full")
    chain = full.platform()
    chain.verify({chain.ark.fingerprint()})
    assert all(not link.fault for link in full.links())
    for layout, size in (("pdh", 2084), ("cert-chain", 6252), ("platform", 8336), ("full", 11536), ("ca", 3200)):
        found = exported(sealift, tmp_path / layout, "--layout", layout)
        assert found.layout is Layout(layout)
        assert (tmp_path / layout).stat().st_size == size
        assert (tmp_path / layout).read_bytes() == full.encode(Layout(layout))
    assert exported(sealift, tmp_path / "default").layout is Layout.PLATFORM
    assert exported(sealift, tmp_path / "text", "--base64") == exported(sealift, tmp_path / "again")
    assert base64.b64decode((tmp_path / "text").read_bytes()) == (tmp_path / "again").read_bytes()


def test_an_unsigned_export_is_the_firmwares_own(sealift: Callable[..., Sealift], tmp_path: Path) -> None:
    signed = exported(sealift, tmp_path / "signed", "--full")
    unsigned = exported(sealift, tmp_path / "unsigned", "--full", "--unsigned")
    faults = {(link.subject, link.issuer): link.fault for link in unsigned.links() if link.fault}
    assert list(faults) == [(Usage.CEK, Usage.ASK)]
    assert "as firmware exports it" in faults[Usage.CEK, Usage.ASK]
    assert signed.platform().cek.unsigned() == unsigned.platform().cek


def test_export_replaces_nothing_unless_it_is_asked_to(sealift: Callable[..., Sealift], tmp_path: Path) -> None:
    path = tmp_path / "chain.cert"
    path.write_text("dear")
    assert "exists already" in complaint(sealift, "platform", "export", path)
    assert path.read_text() == "dear"
    answer(sealift, "platform", "export", "--force", path)
    assert path.stat().st_size == 8336
    assert "cannot be written" in complaint(sealift, "platform", "export", tmp_path / "no" / "where")


def test_an_owner_comes_in_once_and_stays_until_the_reset(sealift: Callable[..., Sealift], tmp_path: Path) -> None:
    before = exported(sealift, tmp_path / "before", "--full").platform()
    oca = tmp_path / "oca"
    answer(sealift, "platform", "provision", "--generate", oca)
    assert stat.S_IMODE(oca.with_suffix(".key").stat().st_mode) == 0o600

    owned = status(sealift)
    assert owned["owner"] == "external"
    after = exported(sealift, tmp_path / "after", "--full").platform()
    after.verify({before.ark.fingerprint()})
    assert after.oca.encode() == oca.with_suffix(".cert").read_bytes()
    assert after.oca.fingerprint().hex() == owned["oca"]
    assert after.pek.body() == before.pek.body()
    assert after.pdh.key() != before.pdh.key()
    assert "external, OCA " in answer(sealift, "platform", "status")

    files = (oca.with_suffix(".cert"), oca.with_suffix(".key"))
    assert "has an external owner; `sealift platform reset` ends that" in complaint(
        sealift, "platform", "provision", *files
    )
    assert "has an external owner" in complaint(sealift, "platform", "provision", "--generate", tmp_path / "other")
    assert list(tmp_path.glob("other*")) == []

    answer(sealift, "platform", "reset", "--yes")
    anew = exported(sealift, tmp_path / "anew", "--full").platform()
    anew.verify({before.ark.fingerprint()})
    assert status(sealift)["owner"] == "self"
    assert anew.cek == before.cek
    assert anew.pek.key() not in (before.pek.key(), after.pek.key())
    answer(sealift, "platform", "provision", *files)
    assert status(sealift)["oca"] == owned["oca"]


def test_an_owner_whose_key_is_elsewhere_signs_the_csr(
    sealift: Callable[..., Sealift], other_host: Host, tmp_path: Path
) -> None:
    """Test files only from one to the other, and what neither a platform nor an owner takes."""
    authority = OwnerAuthority.generate()
    cert, key, csr, signed = (tmp_path / name for name in ("oca.cert", "oca.key", "pek_csr.cert", "signed.cert"))
    write(authority.files(cert, key), replace=False)
    answer(sealift, "platform", "csr", csr)
    assert csr.stat().st_size == 2084
    provision = ("platform", "provision", "--signed")
    assert "the PEK carries no valid signature of the OCA" in complaint(sealift, *provision, csr, cert)
    owner("sign", csr, signed, "--oca", cert, key)
    assert "is not the one of this platform's PEK_CSR" in complaint(
        sealift, *provision, signed, cert, "--host", other_host.path
    )
    assert "it is a PEK certificate" in complaint(sealift, *provision, signed, signed)
    answer(sealift, *provision, signed, cert)
    assert status(sealift)["oca"] == authority.certificate.fingerprint().hex()
    exported(sealift, tmp_path / "after", "--full").platform().verify_owner()
    assert "has an external owner" in complaint(sealift, *provision, signed, cert)
    refused = (tmp_path / "refused", "--oca", cert, key)
    assert "has signatures, and a request has none" in owner("sign", signed, *refused, status=1).complaint
    assert "it is a OCA certificate" in owner("sign", cert, *refused, status=1).complaint
    assert not refused[0].exists()


def test_a_guest_is_launched_on_an_owned_platform(sealift: Callable[..., Sealift], tmp_path: Path) -> None:
    answer(sealift, "platform", "provision", "--generate", tmp_path / "oca")
    running(sealift, "a", *SMALL)


def test_rotate_makes_sessions_for_the_old_pdh_useless(
    sealift: Callable[..., Sealift], places: Places, tmp_path: Path
) -> None:
    owner = AbsentOwner.make(places, tmp_path)
    answer(sealift, "platform", "rotate")
    said = complaint(
        sealift,
        *("run", *SMALL, "--policy", "1"),
        *("--dh-cert-file", owner.dh_cert_file, "--session-file", owner.session_file),
    )
    assert "Bad measurement (status 0xb): the session's WRAP_MAC fails" in said


@pytest.mark.parametrize(
    "change", [("reset", "--yes"), ("rotate",), ("provision", "--generate", "oca")], ids=lambda words: words[0]
)
def test_keys_do_not_change_while_guests_run_and_the_answer_says_which(
    sealift: Callable[..., Sealift], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    guests = [running(sealift, name, *SMALL) for name in ("a", "b")]
    before = exported(sealift, tmp_path / "before")
    assert complaint(sealift, "platform", *change).endswith(
        "cannot change, since they are in use by its guests: a, b: Platform state is invalid (status 0x1): another "
        "process of this host has guests; the keys can change when they are gone"
    )
    assert exported(sealift, tmp_path / "after") == before
    assert list(tmp_path.glob("oca*")) == []
    assert all(guest.process.poll() is None for guest in guests)
    for guest in guests:
        answer(sealift, "stop", guest.arguments[2])
    answer(sealift, "platform", *change)
    assert exported(sealift, tmp_path / "changed") != before


def test_a_guest_that_waits_holds_the_keys_as_one_that_runs(
    sealift: Callable[..., Sealift],
) -> None:
    process = sealift("run", "--name", "a", *SMALL, "--paused")
    process.stderr.wait_for("waits to be started")
    assert "by its guests: a" in complaint(sealift, "platform", "reset", "--yes")


@pytest.mark.parametrize("reply", ["n", "y"])
def test_reset_asks_and_a_no_changes_nothing(sealift: Callable[..., Sealift], tmp_path: Path, reply: str) -> None:
    before = exported(sealift, tmp_path / "before")
    terminal, theirs = pty.openpty()
    process = sealift("platform", "reset", stdin=theirs)
    os.close(theirs)
    process.stderr.wait_for("Erase its keys?")
    os.write(terminal, f"{reply}\n".encode())
    assert process.wait() == (0 if reply == "y" else 1)
    os.close(terminal)
    assert (exported(sealift, tmp_path / "after") == before) is (reply == "n")


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["reset"], 2, "say --yes"),
        (["provision"], 2, "by CERT and KEY, or have it made by --generate"),
        (["provision", "cert"], 2, "by CERT and KEY"),
        (["provision", "cert", "key", "--generate", "x"], 2, "by CERT and KEY"),
        (["provision", "/nonexistent", "/nonexistent"], 1, "the OCA certificate /nonexistent cannot be read"),
        (["provision", "/dev/zero", "/dev/zero"], 1, "is no regular file"),
        (["provision", "cert", "key", "--signed", "pek", "oca"], 2, "or say --signed"),
        (["provision", "--signed", "/nonexistent", "oca"], 1, "the PEK certificate /nonexistent cannot be read"),
        (["csr", "/nonexistent/csr"], 1, "/nonexistent/csr cannot be written"),
        (["export"], 2, "FILE"),
        (["export", "x", "--layout", "round"], 2, "--layout"),
        (["status", "--host", "/proc/none"], 1, "cannot be used"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_sentence(
    sealift: Callable[..., Sealift], state_dir: Path, arguments: list[str], code: int, reason: str
) -> None:
    assert reason in complaint(sealift, "platform", *arguments, status=code)
    assert_nothing_is_left(state_dir)
