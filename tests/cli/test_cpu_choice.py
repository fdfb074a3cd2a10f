"""`sealift run --cpu`: a guest with a CPU that was chosen for it, and what keeps it from that."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import Sealift
from sealift.cli.guest_options import read_config
from sealift.cli.places import Host

from .test_snapshot import LEDGER, progress, running

Start = Callable[..., Sealift]


@pytest.fixture
def given(sealift: Start, tmp_path: Path) -> Path:
    """What guests on the portable engine can have, in a file."""
    said = sealift("cpu", "host", "--engine", "unicorn", "--json")
    assert said.wait() == 0
    path = tmp_path / "given.json"
    path.write_text(said.stdout.text)
    return path


def test_a_guest_with_less_than_the_engine_has_runs_and_moves(
    sealift: Start, other_host: Host, given: Path, tmp_path: Path
) -> None:
    guest = running(sealift, "a", "--engine", "unicorn", "--cpu", f"{given},-cx16,-nx", *LEDGER)
    progress(guest)
    address = f"unix:{tmp_path}/here"
    there = sealift("run", "--name", "a", "--engine", "unicorn", "--incoming", address, "--host", other_host.path)
    there.stderr.wait_for("waiting for a guest")
    assert sealift("check", "a", address).wait() == 0
    assert sealift("migrate", "a", address).wait() == 0
    progress(there)


def test_what_the_engine_cannot_give_is_refused_with_words_that_help(sealift: Start) -> None:
    refused = sealift("run", "--engine", "unicorn", "--cpu", "Opteron_G1", *LEDGER)
    assert refused.wait() == 1
    told = refused.stderr.text
    assert "the engine unicorn cannot give a guest the CPU Opteron_G1-v1 here: it lacks apic, clflush, de" in told
    changes = told.partition("--cpu ")[2].partition(";")[0]
    guest = running(sealift, "a", "--engine", "unicorn", "--cpu", changes, *LEDGER)
    progress(guest)


def test_a_model_that_nobody_knows_is_refused_with_its_neighbours(sealift: Start) -> None:
    refused = sealift("run", "--engine", "unicorn", "--cpu", "Haswel-v4")
    assert refused.wait() == 1
    assert "there is no CPU model 'Haswel-v4'; there is Haswell-v4" in refused.stderr.text


def test_a_guest_that_arrives_brings_its_cpu(sealift: Start) -> None:
    refused = sealift("run", "--incoming", "tcp:127.0.0.1:0", "--cpu", "EPYC-v1")
    assert refused.wait() == 2
    assert "--cpu has no use with --incoming" in refused.stderr.text


@pytest.mark.parametrize(("said", "means"), [("EPYC-v1", "EPYC-v1"), ("a.json,-nx", "{base}/a.json,-nx")])
def test_a_file_in_a_configuration_is_beside_it(tmp_path: Path, said: str, means: str) -> None:
    config = tmp_path / "guest.toml"
    config.write_text(f'cpu = "{said}"')
    assert read_config(config) == {"cpu": means.format(base=tmp_path)}


def test_what_guests_can_have_is_said_without_loading_an_engine() -> None:
    """Numpy and the emulator take several times as long as the answer."""
    command = ("-X", "importtime", "-m", "sealift.cli", "cpu", "host", "--engine", "unicorn")
    said = subprocess.run((sys.executable, *command), check=True, capture_output=True, text=True)
    loaded = {line.rpartition("|")[2].strip() for line in said.stderr.splitlines()}
    assert "sealift.silicon.engines.given" in loaded
    assert not loaded & {"numpy", "unicorn"}
