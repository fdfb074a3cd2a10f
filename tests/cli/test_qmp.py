"""``sealift qmp``, and with it the whole way of an owner elsewhere by the commands that its documentation shows."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.test_absent_owner import LEDGER, assert_chain_with, waiting
from cli.test_commands import SMALL, answer, running
from harness import Sealift
from sealift.sev.certfile import CertificateSet

SECRET = b"what the guest is to know"


def sealift_with_input(text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sealift.cli", *arguments]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


def test_an_owner_elsewhere_gets_its_secret_into_the_guest_with_the_documented_commands(
    sealift: Callable[..., Sealift], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "token").write_bytes(SECRET)
    # The host exports its chain; the owner verifies it against the root that it knows, and makes a session.
    answer(sealift, "platform", "export", "--full", "chain.cert")
    root = CertificateSet.decode((tmp_path / "chain.cert").read_bytes()).platform().ark.fingerprint().hex()
    answer(sealift, "owner", "session", "chain.cert", "--trust", root, "--policy", "nodbg")
    assert stat.S_IMODE((tmp_path / "vm_tik.bin").stat().st_mode) == 0o600

    session = ("--dh-cert-file", "vm_godh.b64", "--session-file", "vm_session.b64")
    process = sealift("run", "--name", "vm", *LEDGER, "--policy", "nodbg", *session)
    waiting(process)
    measurement = json.loads(answer(sealift, "qmp", "vm", "query-sev-launch-measure"))["data"]
    sev = json.loads(answer(sealift, "qmp", "vm", "query-sev"))
    keys = ("--tik", "vm_tik.bin", "--tek", "vm_tek.bin")
    firmware = ("--api", f"{sev['api-major']}.{sev['api-minor']}", "--build", str(sev["build-id"]))
    answer(sealift, "owner", "validate", "--measurement", measurement, *keys, *firmware, *LEDGER, "--policy", "nodbg")

    sealed = answer(sealift, "owner", "secret", "guest:token", "--measurement", measurement, *keys, "--format", "qmp")
    injected = sealift_with_input(sealed, "qmp", "vm", "-")
    assert (injected.returncode, injected.stdout, injected.stderr) == (0, "", "")
    answer(sealift, "qmp", "vm", "cont")
    assert_chain_with(SECRET, process)


def test_arguments_are_json_or_text_and_answers_are_json(sealift: Callable[..., Sealift]) -> None:
    running(sealift, "a", *SMALL)
    assert json.loads(answer(sealift, "qmp", "a", "query-name")) == {"name": "a"}
    assert answer(sealift, "qmp", "a", "migrate-set-parameters", "downtime-limit=120") == ""
    assert json.loads(answer(sealift, "qmp", "a", "query-migrate-parameters"))["downtime-limit"] == 120
    answer(sealift, "qmp", "a", "stop")
    assert json.loads(answer(sealift, "qmp", "a", "query-status"))["status"] == "paused"


@pytest.mark.parametrize(
    ("arguments", "text", "status", "reason"),
    [
        (["a", "dance"], "", 1, "The command dance has not been found"),
        (["a", "migrate", "uri=carrier-pigeon"], "", 1, "is no migration address"),
        (["a", "migrate"], "", 1, "need either 'uri' or 'channels'"),
        (["a", "stop", "now"], "", 2, "write NAME=VALUE"),
        (["a", "-"], "[1]", 1, "standard input holds no QMP command: QMP input must be a JSON object"),
        (["a", "-"], "", 1, "standard input holds no QMP command"),
        (["a", "-", "x=1"], "{}", 2, "takes its arguments along"),
        (["nobody", "stop"], "", 1, "no guest named nobody"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_sentence(
    sealift: Callable[..., Sealift], arguments: list[str], text: str, status: int, reason: str
) -> None:
    if arguments[0] == "a":
        running(sealift, "a", *SMALL)
    done = sealift_with_input(text, "qmp", *arguments)
    assert done.returncode == status
    assert reason in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
