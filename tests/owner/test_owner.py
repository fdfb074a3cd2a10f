from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from sealift.address import Gpa, RamBlock, RamLayout
from sealift.errors import RefusedError, StreamError, UserError, sentence
from sealift.guest.programs import program
from sealift.launch.image import GuestRecipe
from sealift.launch.secrets import GUEST_GUID, MigrationFlags, MigrationSecret, pair_key, snapshot_key
from sealift.owner.definition import GuestDefinition
from sealift.owner.ledger import HOST_LIMIT
from sealift.owner.owner import Owner
from sealift.owner.receivers import ReceiverRule, Scope
from sealift.owner.settings import RestoreRule
from sealift.sev import secret
from sealift.sev.ca import CaCertificate
from sealift.sev.certificate import Usage
from sealift.sev.policy import DEFAULT_POLICY, parse_policy
from sealift.sev.secret import SecretEntry
from sealift.wire.handshake import NO_PUBLIC, Hello, MessageKind, Party
from sealift.wire.owner import OwnerService, PlatformEvidence, SecretGrant, SessionGrant

from .conftest import HANDLER, PLANTED, Host

Log = Callable[[], list[str]]
MakeHost = Callable[[str], Host]


def _launch(owner: OwnerService, host: Host, recipe: GuestRecipe) -> tuple[bytes, MigrationSecret]:
    """A launch that goes as it should: its measurement, and what the handler got."""
    grant = owner.begin(host.evidence())
    measure = host.load(grant, recipe)
    _, taken = host.finish(owner.release(grant.launch_id, measure), recipe)
    assert taken is not None
    return measure, taken


def _receive(owner: OwnerService, host: Host, recipe: GuestRecipe, source: bytes) -> tuple[bytes, MigrationSecret]:
    grant = owner.begin_receiver(host.evidence(), source)
    measure = host.load(grant, recipe.receiver())
    _, taken = host.finish(owner.release(grant.launch_id, measure), recipe)
    assert taken is not None
    return measure, taken


# --- launches -----------------------------------------------------------------------------------------------------


def test_the_guest_on_a_genuine_platform_gets_its_secrets(
    owner: Owner, host: Host, recipe: GuestRecipe, log: Log
) -> None:
    grant = owner.begin(host.evidence())
    assert grant.policy == DEFAULT_POLICY
    measure = host.load(grant, recipe)
    area, taken = host.finish(owner.release(grant.launch_id, measure), recipe)
    entries = {entry.guid: entry.data for entry in secret.parse_table(bytes(area))}
    assert entries[GUEST_GUID] == PLANTED
    assert taken is not None
    assert taken.pair_key is None
    assert taken.flags is MigrationFlags.SKIP_ZERO_PAGES
    assert log()[-1].startswith(f"1970-01-01T00:00:00Z released a secret of launch {grant.launch_id}")


def test_every_launch_has_its_own_key_and_instance(owner: Owner, host: Host, recipe: GuestRecipe) -> None:
    _, first = _launch(owner, host, recipe)
    host.restart()
    _, second = _launch(owner, host, recipe)
    assert first.key != second.key
    assert first.instance_id != second.instance_id


def test_any_accepted_handler_may_run_and_no_other(owner: Owner, host: Host, recipe: GuestRecipe) -> None:
    host.handler = os.urandom(32)
    with pytest.raises(RefusedError, match=f"handler {host.handler.hex()} is not an accepted one"):
        owner.begin(host.evidence())
    owner.accept_handler(host.handler)
    _launch(owner, host, recipe)


@pytest.mark.attack("receivers", "runs another migration handler than it says", gains="nothing")
def test_a_platform_that_runs_another_handler_than_it_said_gets_nothing(
    owner: Owner, host: Host, recipe: GuestRecipe
) -> None:
    grant = owner.begin(host.evidence())
    host.handler = os.urandom(32)
    with pytest.raises(RefusedError, match="its measurement differs"):
        owner.release(grant.launch_id, host.load(grant, recipe))


@pytest.mark.attack("receivers", "launches something else than the guest", gains="nothing")
@pytest.mark.parametrize(
    "change",
    [
        {"command_line": "quiet debug"},
        {"payload": b"another"},
        {"payload": b""},
        {"kernel": program("ledger")},
        {"vcpus": 3},
        {"layout": RamLayout((RamBlock("pc.ram", Gpa(0), 33 << 20),))},
        {"kernel": None, "payload": b"", "command_line": ""},
    ],
    ids=["command line", "payload", "no payload", "kernel", "vcpus", "memory", "receiver image"],
)
def test_anything_else_than_the_guest_gets_nothing(
    owner: Owner, host: Host, recipe: GuestRecipe, log: Log, change: dict[str, Any]
) -> None:
    grant = owner.begin(host.evidence())
    measure = host.load(grant, replace(recipe, **change))
    with pytest.raises(RefusedError, match=f"launch {grant.launch_id} is not what it must be"):
        owner.release(grant.launch_id, measure)
    assert "refused a secret" in log()[-1]


def test_start_up_code_is_part_of_what_is_measured(owner: Owner, host: Host, recipe: GuestRecipe) -> None:
    grant = owner.begin(host.evidence())
    altered = bytearray(recipe.startup)
    altered[64] ^= 1
    with pytest.raises(RefusedError, match="its measurement differs"):
        owner.release(grant.launch_id, host.load(grant, replace(recipe, startup=bytes(altered))))


@pytest.mark.parametrize("field", ["api_major", "api_minor", "build_id"])
def test_a_lie_about_the_firmware_is_found_in_the_measurement(
    owner: Owner, host: Host, recipe: GuestRecipe, field: str
) -> None:
    evidence = host.evidence()
    lie: Any = {field: getattr(evidence, field) + 1}
    grant = owner.begin(msgspec.structs.replace(evidence, **lie))
    with pytest.raises(RefusedError, match="its measurement differs"):
        owner.release(grant.launch_id, host.load(grant, recipe))


def test_a_launch_releases_once(owner: Owner, host: Host, recipe: GuestRecipe) -> None:
    grant = owner.begin(host.evidence())
    measure = host.load(grant, recipe)
    owner.release(grant.launch_id, measure)
    with pytest.raises(RefusedError, match="released before"):
        owner.release(grant.launch_id, measure)


@pytest.mark.attack("receivers", "asks for one launch's secret twice at once", gains="nothing")
def test_a_launch_releases_once_to_requests_that_race(
    owner: Owner, host: Host, recipe: GuestRecipe, tmp_path: Path
) -> None:
    grant = owner.begin(host.evidence())
    measure = host.load(grant, recipe)
    start = threading.Barrier(4)

    def ask() -> SecretGrant | None:
        process = Owner(tmp_path / "owner")
        start.wait(timeout=20)
        try:
            return process.release(grant.launch_id, measure)
        except RefusedError:
            return None

    with ThreadPoolExecutor(4) as pool:
        answers = [future.result() for future in [pool.submit(ask) for _ in range(4)]]
    assert sum(answer is not None for answer in answers) == 1


def test_a_restarted_owner_remembers(owner: Owner, host: Host, recipe: GuestRecipe, tmp_path: Path) -> None:
    """Test that launches outlive the owner's process: released once, by whichever process."""
    grant = owner.begin(host.evidence())
    measure = host.load(grant, recipe)
    Owner(tmp_path / "owner").release(grant.launch_id, measure)
    with pytest.raises(RefusedError, match="released before"):
        owner.release(grant.launch_id, measure)


@pytest.mark.usefixtures("owner")
def test_an_owner_without_a_guest_launches_nothing(host: Host, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="given no guest"):
        Owner(tmp_path / "owner").begin(host.evidence())


def test_a_measurement_of_one_launch_releases_no_other(owner: Owner, host: Host, recipe: GuestRecipe) -> None:
    first, second = owner.begin(host.evidence()), owner.begin(host.evidence())
    measure = host.load(first, recipe)
    with pytest.raises(RefusedError, match="its measurement differs"):
        owner.release(second.launch_id, measure)


@pytest.mark.parametrize("name", ["", "0" * 32, "../settings.json", "0" * 31 + "\n", "x" * 10_000])
def test_a_launch_that_is_not_on_record_is_refused(owner: Owner, log: Log, name: str) -> None:
    with pytest.raises(RefusedError, match="there is no launch"):
        owner.release(name, bytes(48))
    assert len(log()) == 1
    assert len(log()[0]) < 200


@pytest.mark.parametrize("size", [0, 32, 49])
def test_a_measurement_has_one_size(owner: Owner, host: Host, size: int) -> None:
    grant = owner.begin(host.evidence())
    with pytest.raises(RefusedError) as caught:
        owner.release(grant.launch_id, bytes(size))
    assert f"has 48 bytes, not {size}" in sentence(caught.value)
    with pytest.raises(RefusedError, match="no released launch"):
        owner.begin_receiver(host.evidence(), bytes(size))


# --- platforms ----------------------------------------------------------------------------------------------------


def test_an_owner_trusts_nobody_by_itself(host: Host, definition: GuestDefinition, tmp_path: Path) -> None:
    with pytest.raises(RefusedError) as caught:
        Owner(tmp_path / "newcomer", definition).begin(host.evidence())
    assert "is not a root this side trusts" in sentence(caught.value)


def test_a_root_of_the_same_name_is_another_root(owner: Owner, host: Host, ark: bytes, tmp_path: Path) -> None:
    genuine = CaCertificate.decode(ark)
    key = rsa.generate_private_key(65537, 4096)
    forged = CaCertificate.of(Usage.ARK, key.public_key(), genuine.key_id, genuine.key_id).signed(key)
    other = Owner(tmp_path / "other", owner._guest)
    other.trust(forged.encode())
    other.accept_handler(HANDLER)
    with pytest.raises(RefusedError):
        other.begin(host.evidence())


def test_certificates_of_two_hosts_do_not_mix(owner: Owner, make_host: MakeHost) -> None:
    """Test a man in the middle who offers his own key under a genuine platform's certificates."""
    genuine, mine = make_host("a").evidence(), make_host("b").evidence()
    mixed = msgspec.structs.replace(genuine, pdh=mine.pdh)
    with pytest.raises(RefusedError) as caught:
        owner.begin(mixed)
    assert "the PDH carries no valid signature of the PEK" in sentence(caught.value)


def test_the_unsigned_cek_of_the_firmware_is_explained(owner: Owner, host: Host, log: Log) -> None:
    bare = msgspec.structs.replace(host.evidence(), cert_chain=host.processor.pdh_cert_export().cert_chain)
    with pytest.raises(RefusedError):
        owner.begin(bare)
    assert "the CEK is unsigned, as firmware exports it" in log()[-1]


@pytest.mark.parametrize("field", ["pdh", "cert_chain", "ca_chain"])
@pytest.mark.parametrize("content", [b"", b"\0" * 5000])
def test_evidence_that_does_not_parse_is_a_refusal(owner: Owner, host: Host, field: str, content: bytes) -> None:
    change: Any = {field: content}
    with pytest.raises(RefusedError):
        owner.begin(msgspec.structs.replace(host.evidence(), **change))


@pytest.mark.parametrize(("api", "complaint"), [((0, 16), "does not bind"), ((256, 0), "made of bytes")])
def test_firmware_of_an_impossible_or_too_old_version(
    owner: Owner, host: Host, api: tuple[int, int], complaint: str
) -> None:
    evidence = msgspec.structs.replace(host.evidence(), api_major=api[0], api_minor=api[1])
    with pytest.raises(RefusedError) as caught:
        owner.begin(evidence)
    assert complaint in sentence(caught.value)


# --- receivers ----------------------------------------------------------------------------------------------------


def test_a_receiver_shares_a_key_with_the_source_and_can_send_on(
    owner: Owner, make_host: MakeHost, recipe: GuestRecipe
) -> None:
    """Test there, back and there again: each receiver's pair key comes from the key of the launch it receives from."""
    measure, handler = _launch(owner, make_host("a"), recipe)
    for hop in range(1, 4):
        next_measure, receiver = _receive(owner, make_host("ab"[hop % 2]), recipe, measure)
        assert receiver.pair_key == pair_key(handler.key, next_measure)
        assert receiver.instance_id == handler.instance_id
        assert receiver.flags == handler.flags
        assert receiver.key not in {handler.key, receiver.pair_key}
        measure, handler = next_measure, receiver


def test_a_receiver_gets_no_secret_of_the_guest(owner: Owner, make_host: MakeHost, recipe: GuestRecipe) -> None:
    """Test that the guest's own secrets come with its memory, never to the empty image that waits for it."""
    source, _ = _launch(owner, make_host("a"), recipe)
    target = make_host("b")
    grant = owner.begin_receiver(target.evidence(), source)
    measure = target.load(grant, recipe.receiver())
    area, _ = target.finish(owner.release(grant.launch_id, measure), recipe)
    assert PLANTED not in area


def test_a_receiver_has_the_guests_policy(
    tmp_path: Path, definition: GuestDefinition, ark: bytes, make_host: MakeHost, recipe: GuestRecipe
) -> None:
    """Test that the policy comes from the record, not from what the owner would launch today."""
    strict = parse_policy("nodbg,noks,nosend,api=1.50")
    owner = Owner(tmp_path / "owner", replace(definition, policy=strict))
    owner.trust(ark)
    owner.accept_handler(HANDLER)
    source, _ = _launch(owner, make_host("a"), recipe)
    today = Owner(tmp_path / "owner", definition)
    assert today.begin_receiver(make_host("b").evidence(), source).policy == strict


@pytest.mark.attack("receivers", "launches the guest itself in a receiver's place", gains="nothing")
def test_the_guest_itself_cannot_be_launched_as_a_receiver(
    owner: Owner, make_host: MakeHost, recipe: GuestRecipe
) -> None:
    source, _ = _launch(owner, make_host("a"), recipe)
    target = make_host("b")
    grant = owner.begin_receiver(target.evidence(), source)
    with pytest.raises(RefusedError, match="its measurement differs"):
        owner.release(grant.launch_id, target.load(grant, recipe))


def test_a_launch_that_was_never_released_has_no_receivers(
    owner: Owner, make_host: MakeHost, recipe: GuestRecipe
) -> None:
    source = make_host("a")
    measure = source.load(owner.begin(source.evidence()), recipe)
    with pytest.raises(RefusedError, match=f"no released launch has the measurement {measure.hex()}"):
        owner.begin_receiver(make_host("b").evidence(), measure)


def test_a_restarted_owner_serves_receivers_from_its_records(
    owner: Owner, make_host: MakeHost, recipe: GuestRecipe, tmp_path: Path
) -> None:
    source, handler = _launch(owner, make_host("a"), recipe)
    measure, receiver = _receive(Owner(tmp_path / "owner"), make_host("b"), recipe, source)
    assert receiver.pair_key == pair_key(handler.key, measure)


def test_listed_hosts_only(owner: Owner, make_host: MakeHost, recipe: GuestRecipe, log: Log) -> None:
    source, _ = _launch(owner, make_host("a"), recipe)
    owner.set_receivers(ReceiverRule(Scope.ANY, approved=False))
    target = make_host("b")
    with pytest.raises(RefusedError, match="has revoked any host that is not approved by name"):
        owner.begin_receiver(target.evidence(), source)
    assert target.fingerprint.hex() in log()[-1]
    owner.set_receivers(ReceiverRule(Scope.HOST, approved=True, fingerprint=target.fingerprint))
    _receive(owner, target, recipe, source)


@pytest.mark.attack("receivers", "launches the receiver on a platform that is not genuine", gains="nothing")
def test_a_receiver_must_be_genuine_too(owner: Owner, make_host: MakeHost, recipe: GuestRecipe) -> None:
    source, _ = _launch(owner, make_host("a"), recipe)
    target = make_host("b")
    with pytest.raises(RefusedError):
        owner.begin_receiver(msgspec.structs.replace(target.evidence(), ca_chain=bytes(3200)), source)
    target.handler = os.urandom(32)
    with pytest.raises(RefusedError, match="not an accepted one"):
        owner.begin_receiver(target.evidence(), source)


# --- the directory ------------------------------------------------------------------------------------------------


def _files(path: Path) -> list[Path]:
    return [path, *path.rglob("*")]


def test_everything_an_owner_keeps_is_private(owner: Owner, host: Host, recipe: GuestRecipe, tmp_path: Path) -> None:
    _launch(owner, host, recipe)
    files = _files(tmp_path / "owner")
    assert len(files) > 5
    assert all(file.stat().st_mode & 0o077 == 0 for file in files)


@pytest.mark.usefixtures("owner")
def test_an_open_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "owner" / "launches").chmod(0o755)
    with pytest.raises(UserError, match="chmod 700"):
        Owner(tmp_path / "owner")


def test_no_secret_is_in_the_log_or_in_what_is_shown(
    owner: Owner, host: Host, recipe: GuestRecipe, definition: GuestDefinition, log: Log
) -> None:
    grant = owner.begin(host.evidence())
    pending = owner.ledger.find(grant.launch_id)
    assert pending is not None
    assert pending.transport is not None
    keys = [pending.key, pending.transport.tek, pending.transport.tik, PLANTED]
    released = owner.release(grant.launch_id, host.load(grant, recipe))
    shown = "\n".join([*log(), repr(pending), repr(owner), repr(definition), repr(released), repr(grant)])
    for key in keys:
        assert key.hex() not in shown
        assert repr(key)[2:-1] not in shown


def test_a_released_launch_keeps_only_what_the_next_hop_needs(
    owner: Owner, host: Host, recipe: GuestRecipe, tmp_path: Path
) -> None:
    grant = owner.begin(host.evidence())
    before = owner.ledger.find(grant.launch_id)
    assert before is not None
    assert before.transport is not None
    (begun,) = (tmp_path / "owner" / "begun").glob(f"{grant.launch_id}.*")
    assert before.transport.tik in begun.read_bytes()
    owner.release(grant.launch_id, host.load(grant, recipe))
    assert not begun.exists()
    record = tmp_path / "owner" / "launches" / grant.launch_id
    for gone in (before.transport.tik, before.transport.tek, PLANTED):
        assert gone not in record.read_bytes()
    assert before.key in record.read_bytes()


def test_launches_that_are_only_begun_fill_no_disk_and_cost_another_host_nothing(
    owner: Owner,
    host: Host,
    make_host: MakeHost,
    recipe: GuestRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = owner.begin(make_host("other").evidence())
    evidence = host.evidence()
    first = owner.begin(evidence)
    for _ in range(HOST_LIMIT):
        last = owner.begin(evidence)
    assert owner.ledger.find(first.launch_id) is None
    assert owner.ledger.find(other.launch_id) is not None
    monkeypatch.setattr("sealift.owner.ledger.BEGUN_LIMIT", 3)
    assert owner.ledger.find(owner.begin(evidence).launch_id) is not None
    assert len(list((tmp_path / "owner" / "begun").glob("[0-9a-f]*"))) == 3
    host.restart()
    owner.release(last.launch_id, host.load(last, recipe))
    assert owner.ledger.find(last.launch_id) is not None


def test_settings_of_another_process_count_at_once(owner: Owner, tmp_path: Path) -> None:
    digest = os.urandom(32)
    program = (
        "import sys, pathlib\n"
        "from sealift.owner.owner import Owner\n"
        "Owner(pathlib.Path(sys.argv[1])).accept_handler(bytes.fromhex(sys.argv[2]))\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "owner"), digest.hex()], check=True, timeout=60)
    assert set(owner.settings.handlers) == {HANDLER, digest}


def test_nonsense_is_not_trusted(owner: Owner, ark: bytes) -> None:
    before = owner.settings
    with pytest.raises(StreamError):
        owner.trust(ark[:-1])
    with pytest.raises(StreamError):
        owner.accept_handler(b"short")
    with pytest.raises(StreamError):
        owner.set_receivers(ReceiverRule(Scope.HOST, approved=True, fingerprint=bytes(33)))
    with pytest.raises(StreamError):
        owner.set_receivers(ReceiverRule(Scope.ANY, approved=True, guest=b"short"))
    assert owner.settings == before


@pytest.mark.parametrize("content", [b"{}x", b'{"receivers": "\xff"}', b'{"x":' + b"[" * 5000])
def test_damaged_files_have_sentences(owner: Owner, host: Host, tmp_path: Path, content: bytes) -> None:
    grant = owner.begin(host.evidence())
    (begun,) = (tmp_path / "owner" / "begun").glob(f"{grant.launch_id}.*")
    begun.write_bytes(b"\xc1")
    with pytest.raises(UserError, match=f"the record of launch {grant.launch_id} is damaged"):
        owner.release(grant.launch_id, bytes(48))
    (tmp_path / "owner" / "settings.json").write_bytes(content)
    with pytest.raises(UserError, match="settings"):
        owner.begin(host.evidence())


def test_secrets_that_do_not_fit_are_refused_beforehand(recipe: GuestRecipe) -> None:
    with pytest.raises(UserError, match="at most 16384"):
        GuestDefinition(recipe, entries=(SecretEntry(GUEST_GUID, bytes(16_300)),))


# --- the wire -----------------------------------------------------------------------------------------------------


def test_the_conversation_travels_as_it_is(owner: Owner, host: Host, recipe: GuestRecipe) -> None:
    """Test that an owner behind a socket can carry exactly these structures."""

    def wired(message: Any) -> Any:
        return msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=type(message))

    evidence: PlatformEvidence = wired(host.evidence())
    grant: SessionGrant = wired(owner.begin(evidence))
    granted: SecretGrant = wired(owner.release(grant.launch_id, host.load(grant, recipe)))
    _, taken = host.finish(granted, recipe)
    assert taken is not None


@pytest.mark.parametrize(
    ("field", "value"),
    [("pdh", b"short"), ("handler_digest", bytes(31)), ("api_minor", 256), ("ca_chain", bytes(3201))],
)
def test_the_wire_refuses_what_cannot_be(host: Host, field: str, value: object) -> None:
    change: Any = {field: value}
    encoded = msgspec.msgpack.encode(msgspec.structs.replace(host.evidence(), **change))
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(encoded, type=PlatformEvidence)


# --- snapshots ----------------------------------------------------------------------------------------------------


def _header(recipe: GuestRecipe, source: bytes, handler: MigrationSecret, **changes: Any) -> bytes:
    """The header of a snapshot of that launch, as its handler makes it."""
    party = Party(
        instance=handler.instance_id,
        measure=source,
        public=NO_PUBLIC,
        policy=int(DEFAULT_POLICY),
        cbit=47,
        channels=1,
        vcpus=recipe.vcpus,
        mailbox_gpa=Gpa(0x820000),
        layout=recipe.layout,
        excluded=(),
    )
    return Hello(MessageKind.SNAPSHOT, os.urandom(16), replace(party, **changes)).encode()


def _restore(owner: OwnerService, host: Host, recipe: GuestRecipe, header: bytes) -> MigrationSecret:
    grant = owner.begin_restore(host.evidence(), header)
    measure = host.load(grant, recipe.receiver())
    _, taken = host.finish(owner.release(grant.launch_id, measure), recipe)
    assert taken is not None
    return taken


@pytest.fixture
def releasing(owner: Owner) -> Owner:
    """An owner that was told that it may release snapshots."""
    owner.set_restores(RestoreRule.ALLOWED)
    return owner


def test_nothing_is_restored_before_the_owner_was_told_to_allow_it(
    owner: Owner, make_host: MakeHost, recipe: GuestRecipe, log: Log
) -> None:
    """Any VMM can save its guest, and would have two of it."""
    source, handler = _launch(owner, make_host("a"), recipe)
    header = _header(recipe, source, handler)
    with pytest.raises(RefusedError, match=r"lets no snapshot be restored.*sealift owner restores allowed"):
        owner.begin_restore(make_host("b").evidence(), header)
    assert "refused a restore" in log()[-1]


def test_every_restore_is_released_anew_with_the_snapshots_key_and_a_fresh_one(
    releasing: Owner, make_host: MakeHost, recipe: GuestRecipe, log: Log
) -> None:
    source, handler = _launch(releasing, make_host("a"), recipe)
    header = _header(recipe, source, handler)
    target = make_host("b")
    first = _restore(releasing, target, recipe, header)
    target.restart()
    second = _restore(releasing, target, recipe, header)
    assert first.snapshot_key == second.snapshot_key == snapshot_key(handler.key, header)
    assert first.pair_key is None
    assert len({handler.key, first.key, second.key}) == 3
    assert first.instance_id == handler.instance_id
    assert sum("a restore of snapshot" in line for line in log()) == 2


def test_the_key_is_of_one_header_alone(releasing: Owner, make_host: MakeHost, recipe: GuestRecipe) -> None:
    source, handler = _launch(releasing, make_host("a"), recipe)
    one, other = (_header(recipe, source, handler) for _ in range(2))
    assert _restore(releasing, make_host("b"), recipe, one).snapshot_key != snapshot_key(handler.key, other)


def test_a_snapshot_of_a_restored_guest_is_restored_like_any_other(
    releasing: Owner, make_host: MakeHost, recipe: GuestRecipe
) -> None:
    source, handler = _launch(releasing, make_host("a"), recipe)
    target = make_host("b")
    grant = releasing.begin_restore(target.evidence(), _header(recipe, source, handler))
    measure = target.load(grant, recipe.receiver())
    _, restored = target.finish(releasing.release(grant.launch_id, measure), recipe)
    assert restored is not None
    later = _header(recipe, measure, restored)
    assert _restore(releasing, make_host("c"), recipe, later).snapshot_key == snapshot_key(restored.key, later)


def test_an_owner_that_refuses_restores_does_so_until_the_secret_is_out(
    releasing: Owner, make_host: MakeHost, recipe: GuestRecipe, log: Log
) -> None:
    source, handler = _launch(releasing, make_host("a"), recipe)
    header = _header(recipe, source, handler)
    target = make_host("b")
    grant = releasing.begin_restore(target.evidence(), header)
    measure = target.load(grant, recipe.receiver())
    releasing.set_restores(RestoreRule.REFUSED)
    with pytest.raises(RefusedError, match="has come to let no snapshot be restored"):
        releasing.release(grant.launch_id, measure)
    with pytest.raises(RefusedError, match="lets no snapshot be restored"):
        releasing.begin_restore(target.evidence(), header)
    assert "refused a restore" in log()[-1]
    releasing.set_restores(RestoreRule.ALLOWED)
    target.restart()
    _restore(releasing, target, recipe, header)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"policy": 0}, "its policy differ"),
        ({"instance": bytes(16)}, "its instance id differ"),
        ({"vcpus": 7}, "its number of vCPUs differ"),
        ({"layout": RamLayout((RamBlock("pc.ram", Gpa(0), 64 << 20),))}, "its RAMBlock table differ"),
        ({"measure": bytes(48)}, "no released launch has the measurement"),
    ],
    ids=["policy", "instance", "vcpus", "memory", "measurement"],
)
def test_a_header_that_says_something_else_than_the_record_is_refused(
    releasing: Owner, make_host: MakeHost, recipe: GuestRecipe, changes: dict[str, Any], reason: str
) -> None:
    source, handler = _launch(releasing, make_host("a"), recipe)
    with pytest.raises(RefusedError, match=reason):
        releasing.begin_restore(make_host("b").evidence(), _header(recipe, source, handler, **changes))


@pytest.mark.parametrize("header", [b"", bytes(300), b"SLKX" + bytes(200)])
def test_what_is_no_header_is_refused(releasing: Owner, host: Host, header: bytes) -> None:
    with pytest.raises(RefusedError, match="the owner refuses a restore"):
        releasing.begin_restore(host.evidence(), header)


def test_only_listed_and_genuine_hosts_restore(releasing: Owner, make_host: MakeHost, recipe: GuestRecipe) -> None:
    source, handler = _launch(releasing, make_host("a"), recipe)
    header = _header(recipe, source, handler)
    releasing.set_receivers(ReceiverRule(Scope.ANY, approved=False))
    target = make_host("b")
    with pytest.raises(RefusedError, match="has revoked any host that is not approved by name"):
        releasing.begin_restore(target.evidence(), header)
    releasing.set_receivers(ReceiverRule(Scope.HOST, approved=True, fingerprint=target.fingerprint))
    with pytest.raises(RefusedError):
        releasing.begin_restore(msgspec.structs.replace(target.evidence(), ca_chain=bytes(3200)), header)
    _restore(releasing, target, recipe, header)


def test_the_guest_itself_cannot_be_launched_to_restore(
    releasing: Owner, make_host: MakeHost, recipe: GuestRecipe
) -> None:
    source, handler = _launch(releasing, make_host("a"), recipe)
    target = make_host("b")
    grant = releasing.begin_restore(target.evidence(), _header(recipe, source, handler))
    with pytest.raises(RefusedError, match="its measurement differs"):
        releasing.release(grant.launch_id, target.load(grant, recipe))
