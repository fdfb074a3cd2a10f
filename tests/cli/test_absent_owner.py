"""Guests of an owner elsewhere on the command line: its files in every form, its mistakes in the firmware's words."""

from __future__ import annotations

import base64
import json
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from absent import SECRET, AbsentOwner
from cli.test_mistakes import assert_nothing_is_left
from harness import Sealift
from programs.model import chains
from sealift.cli.places import Host, Places
from sealift.cli.qmp_client import QmpClient
from sealift.sev.policy import Policy

WORKING_SET = 16
SMALL = ("--kernel", "idle", "--memory", "16M")
LEDGER = ("--kernel", "ledger", "--memory", "16M", "--append", f"ws={WORKING_SET} flip=0 every=4 burst=4 pause=1000")
WAITS = re.compile(r"waits to be started; its launch measurement is (\S{64})\n")


@pytest.fixture
def owner(places: Places, tmp_path: Path) -> AbsentOwner:
    """An owner who made a session for the user's default host."""
    return AbsentOwner.make(places, tmp_path)


def files(owner: AbsentOwner) -> tuple[str | Path, ...]:
    return (
        *("--policy", str(int(owner.policy))),
        *("--dh-cert-file", owner.dh_cert_file, "--session-file", owner.session_file),
    )


def waiting(process: Sealift) -> bytes:
    """Wait until the guest waits; its launch measurement."""
    text = process.stderr.wait_until(lambda text: WAITS.search(text) is not None, "the measurement")
    found = WAITS.search(text)
    assert found is not None
    return base64.b64decode(found[1])


def assert_chain_with(secret: bytes, process: Sealift) -> None:
    pattern = re.compile(r"^ledger 0 (\d+) (\w{64})$", re.MULTILINE)
    text = process.stdout.wait_until(lambda text: pattern.search(text) is not None, "the ledger")
    (count, chain) = pattern.findall(text)[0]
    assert chains(0, int(count), WORKING_SET, secret)[int(count)] == chain


def test_the_secret_can_come_as_files_which_start_the_guest(
    owner: AbsentOwner, sealift: Callable[..., Sealift], tmp_path: Path
) -> None:
    header, payload = tmp_path / "header.bin", tmp_path / "payload.b64"
    process = sealift("run", *LEDGER, *files(owner), "--launch-secret", f"{header}:{payload}")
    packet = owner.packet(waiting(process))
    (listed,) = json.loads(sealift("ps", "--json").stdout.wait_for("]"))
    assert listed["state"] == "prelaunch"
    # One of them alone, or an empty one, is not yet the packet.
    payload.write_bytes(b"")
    header.write_bytes(packet[0])
    payload.write_bytes(base64.b64encode(packet[1]) + b"\n")
    process.stderr.wait_for("guest guest runs")
    assert_chain_with(SECRET, process)


def test_with_paused_the_files_plant_the_secret_and_the_guest_still_waits(
    owner: AbsentOwner, sealift: Callable[..., Sealift], places: Places, tmp_path: Path
) -> None:
    header, payload = tmp_path / "header", tmp_path / "payload"
    process = sealift("run", *LEDGER, *files(owner), "--launch-secret", f"{header}:{payload}", "-S")
    for path, data in zip((header, payload), owner.packet(waiting(process)), strict=True):
        path.write_bytes(data)
    process.stderr.wait_for("the launch secret is in its place")
    with QmpClient(places.host.run, "guest") as qmp:
        assert qmp.execute("query-status")["status"] == "prelaunch"
        qmp.execute("cont")
    assert_chain_with(SECRET, process)


def test_files_that_come_after_somebody_started_the_guest_do_it_no_harm(
    owner: AbsentOwner, sealift: Callable[..., Sealift], places: Places, tmp_path: Path
) -> None:
    header, payload = tmp_path / "header", tmp_path / "payload"
    process = sealift("run", *LEDGER, *files(owner), "--launch-secret", f"{header}:{payload}")
    packet = owner.packet(waiting(process))
    with QmpClient(places.host.run, "guest") as qmp:
        qmp.execute("cont")
        for path, data in zip((header, payload), packet, strict=True):
            path.write_bytes(data)
        assert_chain_with(b"", process)
        assert qmp.execute("query-status")["status"] == "running"
    assert "the launch secret is in its place" not in process.stderr.text


def test_files_of_another_launch_end_the_guest_with_the_firmwares_reason(
    owner: AbsentOwner, sealift: Callable[..., Sealift], state_dir: Path, tmp_path: Path
) -> None:
    header, payload = tmp_path / "header", tmp_path / "payload"
    for path, data in zip((header, payload), owner.packet(bytes(48)), strict=True):
        path.write_bytes(data)
    process = sealift("run", *SMALL, *files(owner), "--launch-secret", f"{header}:{payload}")
    assert process.wait() == 1
    assert "Bad measurement (status 0xb): the packet's MAC fails" in process.stderr.text
    assert "idle ready" not in process.stdout.text
    assert_nothing_is_left(state_dir)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("secret", [(), ("--launch-secret", "/nonexistent/header:/nonexistent/payload")], ids=len)
def test_a_signal_while_a_guest_waits_leaves_nothing_behind(
    owner: AbsentOwner, sealift: Callable[..., Sealift], state_dir: Path, number: int, secret: tuple[str, ...]
) -> None:
    process = sealift("run", *SMALL, *files(owner), *secret)
    waiting(process)
    process.signal(number)
    assert process.wait() == 0
    assert_nothing_is_left(state_dir)
    assert "idle ready" not in process.stdout.text


def test_raw_files_are_read_like_base64_and_no_local_owner_is_asked(
    owner: AbsentOwner, sealift: Callable[..., Sealift], state_dir: Path
) -> None:
    owner.dh_cert_file.write_bytes(owner.offered.dh_cert)
    owner.session_file.write_bytes(owner.offered.session)
    process = sealift("run", *SMALL, *files(owner))
    assert len(waiting(process)) == 48
    assert "the owner trusts" not in process.stderr.text
    assert not (state_dir / "owner").exists()


def test_a_configuration_file_may_name_the_owners_files(
    owner: AbsentOwner, sealift: Callable[..., Sealift], tmp_path: Path
) -> None:
    config = tmp_path / "guest.toml"
    config.write_text(
        f'kernel = "idle"\nmemory = "16M"\npolicy = {int(owner.policy)}\n'
        f'dh-cert-file = "{owner.dh_cert_file.name}"\nsession-file = "{owner.session_file.name}"\n'
        'launch-secret = "h:p"\n'
    )
    process = sealift("run", config)
    for name, data in zip(("h", "p"), owner.packet(waiting(process)), strict=True):
        (tmp_path / name).write_bytes(data)
    process.stdout.wait_for("idle ready")


def _changed(owner: AbsentOwner, what: str, places: Places, directory: Path) -> AbsentOwner:
    match what:
        case "policy":
            return replace(owner, policy=owner.policy | Policy.NOKS)
        case "another host's session":
            elsewhere = replace(places, host=Host(directory / "elsewhere"))
            return replace(owner, session_file=AbsentOwner.make(elsewhere, directory).session_file)
        case "short session":
            owner.session_file.write_bytes(base64.b64encode(owner.offered.session[:-1]))
        case "short certificate":
            owner.dh_cert_file.write_bytes(owner.offered.dh_cert[:-1])
        case "certificate of another use":
            cert = bytearray(owner.offered.dh_cert)
            cert[8:12] = (0x1002).to_bytes(4, "little")
            owner.dh_cert_file.write_bytes(cert)
    return owner


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("policy", "Bad measurement (status 0xb): the session's POLICY_MAC fails: it was not made for policy 0x3"),
        ("another host's session", "Bad measurement (status 0xb): the session's WRAP_MAC fails"),
        ("short session", "Buffer too small (status 0x4): the session has 128 bytes, not 127"),
        ("short certificate", "Buffer too small (status 0x4): the Diffie-Hellman certificate has 2084 bytes, not 2083"),
        ("certificate of another use", "Certificate is invalid (status 0x6): a PEK key"),
    ],
)
def test_what_does_not_fit_is_named_with_the_firmwares_status(
    owner: AbsentOwner,
    places: Places,
    sealift: Callable[..., Sealift],
    state_dir: Path,
    tmp_path: Path,
    what: str,
    reason: str,
) -> None:
    (directory := tmp_path / "changed").mkdir()
    process = sealift("run", *SMALL, *files(_changed(owner, what, places, directory)))
    assert process.wait() == 1
    assert reason in process.stderr.text.splitlines()[-1]
    assert_nothing_is_left(state_dir)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--dh-cert-file", "godh"], "belong together"),
        (["--session-file", "session"], "belong together"),
        (["--launch-secret", "h:p"], "--launch-secret brings the secret of an owner who is not asked"),
        (["--no-owner", "--launch-secret", "h"], "does not name two files"),
        (["--no-owner", "--secret", "key"], "--secret is planted by the local owner"),
        (["--dh-cert-file", "/nonexistent", "--session-file", "s"], "the DH certificate /nonexistent cannot be read"),
        (["--dh-cert-file", "/dev/zero", "--session-file", "s"], "is no regular file"),
        (["--incoming", "tcp:127.0.0.1:0", "--session-file", "s"], "--session-file has no use with --incoming"),
        (["--incoming", "tcp:127.0.0.1:0", "-S"], "--paused has no use with --incoming"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_that_do_not_fit_together_are_refused(
    sealift: Callable[..., Sealift], state_dir: Path, options: list[str], reason: str
) -> None:
    process = sealift("run", *options)
    assert process.wait() in {1, 2}
    assert reason in process.stderr.text.splitlines()[-1]
    assert_nothing_is_left(state_dir)


def test_an_empty_certificate_is_not_taken_for_a_launch_without_an_owner(
    owner: AbsentOwner, sealift: Callable[..., Sealift]
) -> None:
    owner.dh_cert_file.write_bytes(b"")
    process = sealift("run", *SMALL, *files(owner))
    assert process.wait() == 1
    assert "is empty" in process.stderr.text
