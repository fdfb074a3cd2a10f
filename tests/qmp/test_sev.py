"""QEMU's SEV commands, driven by QEMU's own client: an owner elsewhere validates, plants its secret, and says go."""

from __future__ import annotations

import base64
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qemu.qmp import ExecuteError

from absent import SECRET, AbsentOwner
from harness import PATIENCE_S
from programs.model import chains
from qmp.conftest import Served, serving
from qmp.test_server import ask
from sealift.cli.places import Places
from sealift.cli.recipes import make_recipe
from sealift.cli.wiring import HostedGuest
from sealift.errors import SealError
from sealift.launch.secrets import INSTANCE_ID_SIZE, KEY_SIZE, MigrationSecret
from sealift.sev import certificate
from sealift.sev.certificate import Certificate
from sealift.sev.chain import PlatformChain
from sealift.sev.measurement import FirmwareVersion
from sealift.sev.policy import Policy
from sealift.sev.report import AttestationReport
from sealift.vmm.guest import Guest
from sealift.vmm.launch import evidence_of
from sealift.vmm.migration.parameters import Parameters
from sealift.vmm.qmp.commands import COMMANDS
from sealift.vmm.qmp.message import QmpError, Request

MEMORY = 16 << 20
WORKING_SET = 16
APPEND = f"ws={WORKING_SET} flip=0 every=4 burst=4 pause=1000"


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.fixture
def owner(places: Places, tmp_path: Path) -> AbsentOwner:
    """An owner who made a session for the user's default host."""
    return AbsentOwner.make(places, tmp_path)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[Guest], Served]]:
    """Serves QMP for guests until the end of the test."""
    with ExitStack() as ending:
        yield lambda guest: ending.enter_context(serving(guest, tmp_path / f"{guest.name}.sock"))


@pytest.fixture
def waiting(
    owner: AbsentOwner, guest: Callable[..., HostedGuest], serve: Callable[[Guest], Served]
) -> Callable[..., Served]:
    """Launches guests of that owner, which then wait; ``waiting(kernel="ledger")``."""

    def launch(**options: Any) -> Served:
        return serve(
            guest(
                policy=int(owner.policy),
                dh_cert_file=owner.dh_cert_file,
                session_file=owner.session_file,
                memory=MEMORY,
                **options,
            ).guest
        )

    return launch


def measure_of(served: Served) -> bytes:
    return base64.b64decode(ask(served, "query-sev-launch-measure")["data"])


def inject(served: Served, packet: tuple[bytes, bytes], **more: object) -> None:
    header, payload = packet
    assert ask(served, "sev-inject-launch-secret", packet_header=encoded(header), secret=encoded(payload), **more) == {}


def test_an_owner_elsewhere_validates_plants_its_secret_and_the_guest_uses_it(
    owner: AbsentOwner, waiting: Callable[..., Served]
) -> None:
    served = waiting(kernel="ledger", append=APPEND)
    assert ask(served, "query-status") == {"running": False, "status": "prelaunch"}
    info = ask(served, "query-sev")
    assert info == {
        "enabled": True,
        "api-major": 1,
        "api-minor": 55,
        "build-id": 25,
        "state": "launch-secret",
        "sev-type": "sev",
        "policy": int(owner.policy),
        "handle": 1,
    }
    measure = measure_of(served)
    version = FirmwareVersion(info["api-major"], info["api-minor"], info["build-id"])
    assert owner.expects(measure, version, MEMORY, "ledger", APPEND)
    assert not owner.expects(measure, version, MEMORY, "idle")
    inject(served, owner.packet(measure))
    assert served.guest.console.tail(1) == []  # not one instruction has run
    assert ask(served, "cont") == {}
    assert ask(served, "query-sev")["state"] == "running"
    assert measure_of(served) == measure
    assert_chain_with(SECRET, served.guest)


def test_an_sev_es_guest_of_an_owner_elsewhere_is_measured_with_its_vcpus(
    places: Places, tmp_path: Path, guest: Callable[..., HostedGuest], serve: Callable[[Guest], Served]
) -> None:
    owner = AbsentOwner.make(places, tmp_path, Policy.NODBG | Policy.ES)
    session = {"dh_cert_file": owner.dh_cert_file, "session_file": owner.session_file}
    hosted = guest(policy="nodbg,es", kernel="ledger", append=APPEND, memory=MEMORY, engine="unicorn", **session)
    served = serve(hosted.guest)
    info = ask(served, "query-sev")
    assert (info["policy"], info["state"]) == (int(owner.policy), "launch-secret")
    version = FirmwareVersion(info["api-major"], info["api-minor"], info["build-id"])
    measure = measure_of(served)
    assert owner.expects(measure, version, MEMORY, "ledger", APPEND)
    inject(served, owner.packet(measure))
    ask(served, "cont")
    assert_chain_with(SECRET, served.guest)


def assert_chain_with(secret: bytes, guest: Guest) -> None:
    """The ledger's contents carry the secret it found, so its chain shows which that was."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := re.findall(r"^ledger 0 (\d+) (\w{64})$", "\n".join(guest.console.tail(40)), re.MULTILINE)):
        assert time.monotonic() < deadline, guest.console.tail(40)
        time.sleep(0.05)
    count, chain = int(found[0][0]), found[0][1]
    assert chains(0, count, WORKING_SET, secret)[count] == chain


def test_a_started_guest_takes_no_secret(owner: AbsentOwner, waiting: Callable[..., Served]) -> None:
    served = waiting()
    packet = owner.packet(measure_of(served))
    ask(served, "cont")
    with pytest.raises(ExecuteError, match=r"^SEV: Not in correct state\. \(LSECRET\) 3$"):
        inject(served, packet)


def test_a_secret_for_another_measurement_is_refused_and_the_right_one_still_taken(
    owner: AbsentOwner, waiting: Callable[..., Served]
) -> None:
    served = waiting(kernel="ledger", append=APPEND)
    measure = measure_of(served)
    other = bytes([measure[0] ^ 1]) + measure[1:]
    with pytest.raises(ExecuteError, match=r"failed to inject secret fw_error=11 'Bad measurement.*MAC"):
        inject(served, owner.packet(other))
    assert ask(served, "query-sev")["state"] == "launch-secret"
    inject(served, owner.packet(measure))
    ask(served, "cont")
    assert_chain_with(SECRET, served.guest)


def test_without_its_secret_the_guest_runs_without_one(waiting: Callable[..., Served]) -> None:
    served = waiting(kernel="ledger", append=APPEND)
    ask(served, "cont")
    assert_chain_with(b"", served.guest)


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"packet_header": "AAAA"}, r"fw_error=4 'Buffer too small .*header has 52 bytes, not 3"),
        ({"packet_header": "no base64!"}, "^SEV: Failed to decode sequence header$"),
        ({"packet_header": ""}, "^SEV: Failed to decode sequence header$"),
        ({"secret": "no base64!"}, "^SEV: Failed to decode data$"),
        ({"secret": "AAAA"}, r"fw_error=4 'Buffer too small .*3 bytes"),
        ({"gpa": 0x810001}, r"fw_error=9 'Invalid address .*0x810001"),
        ({"gpa": 1 << 40}, r"fw_error=9 .* GPA 0x10000000000 are not all guest RAM"),
        ({"gpa": 1 << 65}, "^Parameter 'gpa' expects an integer <= "),
        ({"gpa": "0x810000"}, "^Invalid parameter type for 'gpa', expected: integer$"),
        ({"gpu": 1}, "^Parameter 'gpu' is unexpected$"),
    ],
    ids=str,
)
def test_a_malformed_secret_is_refused_with_the_field_that_is_wrong(
    owner: AbsentOwner, waiting: Callable[..., Served], changed: dict[str, object], complaint: str
) -> None:
    served = waiting()
    header, payload = owner.packet(measure_of(served))
    arguments: dict[str, object] = {"packet_header": encoded(header), "secret": encoded(payload)}
    with pytest.raises(ExecuteError, match=complaint):
        ask(served, "sev-inject-launch-secret", **(arguments | changed))
    assert ask(served, "query-sev")["state"] == "launch-secret"
    inject(served, (header, payload))


def test_a_secret_may_be_put_elsewhere_and_the_guest_that_looks_in_its_place_finds_none(
    owner: AbsentOwner, waiting: Callable[..., Served]
) -> None:
    served = waiting(kernel="ledger", append=APPEND)
    inject(served, owner.packet(measure_of(served)), gpa=0x400000)
    ask(served, "cont")
    assert_chain_with(b"", served.guest)


def test_only_a_migration_key_in_its_secret_lets_such_a_guest_be_migrated_by_its_handler(
    owner: AbsentOwner, waiting: Callable[..., Served]
) -> None:
    plain, keyed = waiting(name="plain"), waiting(name="keyed")
    inject(plain, owner.packet(measure_of(plain)))
    migration = MigrationSecret(os.urandom(INSTANCE_ID_SIZE), os.urandom(KEY_SIZE)).entry()
    inject(keyed, owner.packet(measure_of(keyed), migration))
    for served in (plain, keyed):
        with pytest.raises(ExecuteError, match="is prelaunch; only one that runs or is paused can move"):
            ask(served, "migrate", uri="unix:/nobody/is/asked")
        ask(served, "cont")
    (reason,) = ask(plain, "query-migrate")["blocked-reasons"]
    assert "no migration" in reason
    assert "blocked-reasons" not in ask(keyed, "query-migrate")


def test_the_local_owners_guest_can_be_made_to_wait_too(
    guest: Callable[..., HostedGuest], serve: Callable[[Guest], Served]
) -> None:
    served = serve(guest(paused=True).guest)
    assert ask(served, "query-status")["status"] == "prelaunch"
    assert len(measure_of(served)) == 48
    ask(served, "stop")
    assert ask(served, "query-status")["status"] == "prelaunch"
    ask(served, "cont")
    assert ask(served, "query-status") == {"running": True, "status": "running"}


def test_a_guest_without_an_owner_runs_at_once_on_keys_that_everybody_knows(
    guest: Callable[..., HostedGuest], serve: Callable[[Guest], Served]
) -> None:
    served = serve(guest(no_owner=True, policy=1).guest)
    assert ask(served, "query-status")["running"]
    assert ask(served, "query-sev")["policy"] == 1
    assert ask(served, "query-migrate")["blocked-reasons"]


def test_the_capabilities_are_what_the_firmware_exports_and_lead_to_the_root_with_the_manufacturers_cek(
    waiting: Callable[..., Served],
) -> None:
    served = waiting()
    platform = served.guest.machine.platform
    evidence = evidence_of(platform)
    found = ask(served, "query-sev-capabilities")
    assert set(found) == {"pdh", "cert-chain", "cpu0-id", "cbitpos", "reduced-phys-bits"}
    pdh, cert_chain = (base64.b64decode(found[name]) for name in ("pdh", "cert-chain"))
    assert len(base64.b64decode(found["cpu0-id"])) == 64
    assert (found["cbitpos"], found["reduced-phys-bits"]) == (platform.info().cbit, 1)
    exported = PlatformChain.decode(pdh, cert_chain, evidence.ca_chain)
    exported.verify_owner()
    with pytest.raises(SealError, match="the CEK is unsigned, as firmware exports it"):
        exported.verify_chip({exported.ark.fingerprint()})
    chain = PlatformChain.decode(pdh, evidence.cert_chain, evidence.ca_chain)
    chain.verify({chain.ark.fingerprint()})
    assert chain.cek.unsigned() == exported.cek


@pytest.mark.parametrize("started", [False, True])
def test_a_report_says_what_was_launched_under_the_platforms_own_signature(
    owner: AbsentOwner,
    waiting: Callable[..., Served],
    started: bool,  # noqa: FBT001  # a test parameter
) -> None:
    served = waiting()
    if started:
        ask(served, "cont")
    mnonce = os.urandom(16)
    report = AttestationReport.decode(
        base64.b64decode(ask(served, "query-sev-attestation-report", mnonce=encoded(mnonce))["data"])
    )
    digest = make_recipe(MEMORY, 2, "idle").launch_digest()
    assert (report.mnonce, report.launch_digest, report.policy) == (mnonce, digest, owner.policy)
    pek = Certificate.decode(base64.b64decode(ask(served, "query-sev-capabilities")["cert-chain"])[: certificate.SIZE])
    assert report.verifies(pek.key())


@pytest.mark.parametrize(
    ("mnonce", "complaint"),
    [
        ("no base64!", "^SEV: failed to decode mnonce input$"),
        (encoded(bytes(15)), r"^SEV: mnonce must be 16 bytes \(got 15\)$"),
    ],
)
def test_a_report_needs_a_nonce_of_16_bytes(waiting: Callable[..., Served], mnonce: str, complaint: str) -> None:
    with pytest.raises(ExecuteError, match=complaint):
        ask(waiting(), "query-sev-attestation-report", mnonce=mnonce)


_SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=100)
_BLOBS = st.binary(max_size=100).map(encoded)
_VALUES = _SCALARS | _BLOBS | st.lists(_SCALARS, max_size=2)


def test_whatever_the_arguments_are_the_answer_is_an_error_and_the_guest_still_takes_its_secret(
    owner: AbsentOwner, waiting: Callable[..., Served]
) -> None:
    served = waiting()

    @given(
        st.fixed_dictionaries({"packet-header": _VALUES, "secret": _VALUES}, optional={"gpa": _VALUES}),
        st.fixed_dictionaries({"mnonce": _VALUES.filter(lambda value: len(str(value)) != 24)}),
    )
    @settings(max_examples=100, deadline=None)
    def refused(secret: dict[str, object], report: dict[str, object]) -> None:
        for name, arguments in (("sev-inject-launch-secret", secret), ("query-sev-attestation-report", report)):
            with pytest.raises(QmpError):
                COMMANDS.find(name).bind(Request(name, arguments), served.guest)()

    refused()
    inject(served, owner.packet(measure_of(served)))


def test_a_guest_that_has_not_arrived_has_no_sev_yet(serve: Callable[[Guest], Served]) -> None:
    served = serve(Guest("awaited", Parameters()))
    assert ask(served, "query-sev")["enabled"] is False
    with pytest.raises(ExecuteError, match="SEV launch measurement is not available"):
        ask(served, "query-sev-launch-measure")
    with pytest.raises(ExecuteError, match="has not arrived"):
        ask(served, "query-sev-capabilities")
