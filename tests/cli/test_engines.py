"""Which engine runs a guest, and what is said where it cannot be the one that is needed; on any machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness import Sealift, processes_naming
from launch.bzimages import bzimage
from usable_kvm import why_not

Start = Callable[..., Sealift]

needs_no_kvm = pytest.mark.skipif(not why_not(), reason="KVM is usable here, so nothing is refused")


def last_words(process: Sealift) -> str:
    """What a command that failed said; without a traceback."""
    assert process.wait() == 1
    assert "Traceback" not in process.stderr.text
    assert process.stdout.text == ""
    return process.stderr.text.splitlines()[-1]


def test_the_check_is_a_status_and_a_sentence(sealift: Start) -> None:
    check = sealift("check", "kvm")
    if why_not():
        assert last_words(check) == f"sealift: {why_not()}"
        assert len(check.stderr.text.splitlines()) == 1
    else:
        assert check.wait() == 0
        assert check.stdout.text == "KVM can run guests here\n"


@pytest.mark.parametrize("options", [[], ["--engine", "auto"]], ids=["by default", "auto"])
def test_the_best_engine_is_taken_and_why_is_said_to_who_asks(sealift: Start, options: list[str]) -> None:
    run = sealift("run", "-v", "--memory", "16M", *options)
    run.stderr.wait_for("runs")
    engine = f"unicorn: {why_not()}" if why_not() else "kvm: KVM passed its self-test"
    assert f"the engine is {engine}" in run.stderr.text


def test_nothing_is_said_to_who_does_not_ask(sealift: Start) -> None:
    run = sealift("run", "--memory", "16M", "--engine", "unicorn")
    assert "engine" not in run.stderr.wait_for("runs")


def test_the_portable_engine_can_be_asked_for(sealift: Start) -> None:
    run = sealift("run", "-v", "--memory", "16M", "--engine", "unicorn")
    assert "the engine is unicorn: it was asked for" in run.stderr.wait_for("runs")


@needs_no_kvm
def test_kvm_that_cannot_be_used_is_refused_with_the_reason(sealift: Start, state_dir: Path) -> None:
    words = last_words(sealift("run", "--memory", "16M", "--engine", "kvm"))
    assert words.startswith("sealift: ")
    assert why_not() in words
    assert processes_naming(state_dir) == {}


@pytest.mark.parametrize("engine", ["unicorn", pytest.param("auto", marks=needs_no_kvm)])
def test_linux_on_the_portable_engine_is_refused_before_it_is_launched(
    sealift: Start, state_dir: Path, tmp_path: Path, engine: str
) -> None:
    kernel = tmp_path / "bzImage"
    kernel.write_bytes(bzimage())
    run = sealift("run", "--kernel", kernel, "--memory", "64M", "--engine", engine)
    why = "it was asked for" if engine == "unicorn" else why_not()
    words = last_words(run)
    assert words == f"sealift: Linux needs the engine kvm, and this platform runs guests on unicorn: {why}"
    assert processes_naming(state_dir) == {}
    assert list(state_dir.glob("hosts/*/run/*")) == []


# --- SEV-ES -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["auto", "unicorn"])
def test_a_guest_with_es_runs_on_the_engine_that_hides_registers(sealift: Start, engine: str) -> None:
    run = sealift("run", "-v", "--memory", "16M", "--kernel", "idle", "--policy", "es,nodbg", "--engine", engine)
    run.stdout.wait_for("idle ready")
    assert "the engine is unicorn: " in run.stderr.text


def test_a_guest_with_es_is_refused_where_kvm_was_asked_for(sealift: Start, state_dir: Path) -> None:
    words = last_words(sealift("run", "--memory", "16M", "--policy", "es", "--engine", "kvm"))
    assert (why_not() or "the engine kvm runs no SEV-ES guests") in words
    assert processes_naming(state_dir) == {}


def test_linux_with_es_is_refused_with_the_reason(sealift: Start, tmp_path: Path) -> None:
    (tmp_path / "vmlinuz").write_bytes(bzimage())
    words = last_words(sealift("run", "--memory", "32M", "--policy", "es", "--kernel", tmp_path / "vmlinuz"))
    assert "whose host would see the registers of an SEV-ES guest" in words
