"""Whether KVM can be used is found out once a boot, by a process that may fail or hang, and said in one sentence."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sealift.errors import UserError
from sealift.silicon.engines.kvm import usable

GOOD = ""
BAD = "print('Something before it'); print('VMMCALL does nothing'); raise SystemExit(1)"


class SelfTest:
    """A self-test that does what it is told, and how often it was asked."""

    def __init__(self, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._runs = runs
        self._monkeypatch = monkeypatch
        self.does(GOOD)

    def does(self, code: str) -> None:
        """From now on this."""
        count = f"open({str(self._runs)!r}, 'a').write('x')"
        self._monkeypatch.setattr(usable, "_SELF_TEST", (sys.executable, "-c", f"{count}\n{code}"))

    @property
    def runs(self) -> int:
        """How often it was run."""
        return len(self._runs.read_text()) if self._runs.exists() else 0


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A device that exists and may be used."""
    path = tmp_path / "kvm"
    path.touch()
    monkeypatch.setattr(usable, "DEVICE", str(path))
    return path


@pytest.fixture
def boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The kernel's name for this boot."""
    path = tmp_path / "boot_id"
    path.write_text("first\n")
    monkeypatch.setattr(usable, "_BOOT_ID", path)
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the verdict is remembered."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "sealift" / "kvm-selftest.json"


@pytest.fixture
def self_test(device: Path, boot: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SelfTest:
    """On a machine with a device, at its first boot, with nothing remembered."""
    assert device.exists()
    assert boot.exists()
    assert not cache.exists()
    return SelfTest(tmp_path / "runs", monkeypatch)


def reason(*, anew: bool = False) -> str:
    """Why KVM cannot be used."""
    with pytest.raises(UserError) as refused:
        usable.check(anew=anew)
    return str(refused.value)


# --- the verdict ----------------------------------------------------------------------------------------------------


def test_a_self_test_that_passes_is_all_that_is_asked(self_test: SelfTest) -> None:
    usable.check()
    assert self_test.runs == 1


def test_without_the_device_nothing_is_tried(self_test: SelfTest, device: Path) -> None:
    device.unlink()
    assert reason() == f"{device} does not exist"
    assert self_test.runs == 0


def test_a_device_that_this_user_may_not_use_is_called_so(
    self_test: SelfTest, device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # to root, everything is permitted
    assert reason() == f"{device} may not be used by this user"
    assert self_test.runs == 0


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (BAD, "VMMCALL does nothing"),
        ("import sys; sys.exit('it fell over')", "it fell over"),
        ("import os; os._exit(7)", "it ended with status 7"),
        ("import os; os.kill(os.getpid(), 9)", "it ended with status -9"),
    ],
    ids=["its last words", "an error's last line", "a status", "a signal"],
)
def test_a_self_test_that_fails_says_why(self_test: SelfTest, code: str, why: str) -> None:
    self_test.does(code)
    assert reason() == f"KVM failed its self-test: {why}"


def test_a_self_test_that_hangs_is_ended(self_test: SelfTest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usable, "_LIMIT_S", 0.1)
    self_test.does("import signal; signal.pause()")
    assert reason().startswith("KVM failed its self-test: it has not ended after")


@pytest.mark.timeout(30)
def test_a_reason_is_told_though_its_process_hangs_after_it(self_test: SelfTest) -> None:
    self_test.does("import signal; print('a vCPU hangs in VMMCALL', flush=True); signal.pause()")
    assert reason() == "KVM failed its self-test: a vCPU hangs in VMMCALL"


# --- what is remembered ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [GOOD, BAD], ids=["usable", "unusable"])
def test_a_verdict_holds_until_the_machine_boots_anew(self_test: SelfTest, boot: Path, code: str) -> None:
    self_test.does(code)
    for runs, name in ((1, "first"), (1, "first"), (2, "second"), (2, "second")):
        boot.write_text(f"{name}\n")
        if code == GOOD:
            usable.check()
        else:
            assert reason() == "KVM failed its self-test: VMMCALL does nothing"
        assert self_test.runs == runs


def test_a_bad_verdict_holds_for_some_minutes_only(self_test: SelfTest, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have been the machine's load; a good one cannot have been."""
    now = 1000.0
    monkeypatch.setattr(usable, "_now", lambda: now)
    self_test.does(BAD)
    for seconds, runs in ((0, 1), (299, 1), (1, 2), (-5, 3)):
        now += seconds
        assert "VMMCALL" in reason()
        assert self_test.runs == runs
    self_test.does(GOOD)
    now += 300
    usable.check()
    now += 1_000_000
    usable.check()
    assert self_test.runs == 4


def test_a_stage_of_the_self_test_that_hangs_ends_it_with_the_stages_name(self_test: SelfTest) -> None:
    self_test.does(
        "import signal\n"
        "from sealift.silicon.engines.kvm import selftest\n"
        "selftest.STAGE_LIMIT_S = 0.05\n"
        "with selftest._stage('VMMCALL'): signal.pause()"
    )
    assert reason() == "KVM failed its self-test: a vCPU hangs in VMMCALL"


def test_a_kernel_that_refuses_in_the_middle_is_a_reason(self_test: SelfTest) -> None:
    self_test.does(
        "import sys\n"
        "from sealift.silicon.engines.kvm import selftest\n"
        "def refuse(): raise OSError(22, 'Invalid argument')\n"
        "selftest._test = refuse\n"
        "sys.exit(selftest.main())"
    )
    assert reason() == "KVM failed its self-test: the kernel refuses it (Invalid argument)"


def test_who_asks_anew_gets_a_new_verdict_which_then_holds(self_test: SelfTest) -> None:
    self_test.does(BAD)
    reason()
    self_test.does(GOOD)
    reason()
    usable.check(anew=True)
    usable.check()
    assert self_test.runs == 2


def test_a_verdict_does_not_outlive_the_device(self_test: SelfTest, device: Path) -> None:
    usable.check()
    device.unlink()
    assert reason() == f"{device} does not exist"
    assert self_test.runs == 1


def test_a_verdict_does_not_outlive_the_module_that_made_the_device(self_test: SelfTest, device: Path) -> None:
    usable.check()
    device.unlink()
    device.touch()
    usable.check()
    assert self_test.runs == 2


def _verdict(**fields: object) -> bytes:
    return json.dumps(fields).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\x00rubbish",
        b"[]",
        _verdict(boot="first", code=usable._code(), at=0),
        _verdict(boot="first", code=usable._code(), reason=7, at=0),
        _verdict(boot="first", code=usable._code(), reason="x" * usable._FILE_LIMIT, at=0),
        _verdict(boot="another", device="", code=usable._code(), reason="", at=0),
        _verdict(boot="first", device="", code="another", reason="", at=0),
        _verdict(boot="first", code=usable._code(), reason="", at=0),
        _verdict(boot="first", device="", reason="", at=0),
    ],
    ids=[
        "nothing",
        "no text",
        "a list",
        "half",
        "another type",
        "endless",
        "another boot",
        "other code",
        "no device",
        "no code",
    ],
)
def test_rubbish_is_not_remembered(self_test: SelfTest, cache: Path, content: bytes) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_bytes(content)
    self_test.does(BAD)
    assert "VMMCALL" in reason()
    assert self_test.runs == 1


def _no_place(cache: Path) -> None:
    cache.parent.parent.write_text("a file where a directory should be")


def _in_the_way(cache: Path) -> None:
    cache.mkdir(parents=True)


@pytest.mark.parametrize("spoil", [_no_place, _in_the_way], ids=["no directory", "a directory in its place"])
def test_without_a_place_to_remember_it_is_found_out_again(
    self_test: SelfTest, cache: Path, spoil: Callable[[Path], None]
) -> None:
    spoil(cache)
    usable.check()
    usable.check()
    assert self_test.runs == 2


def test_only_the_verdict_is_left_behind(self_test: SelfTest, cache: Path) -> None:
    usable.check()
    assert self_test.runs == 1
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]
