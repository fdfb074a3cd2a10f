"""Whatever stands where a value or a file belongs, a command ends with a sentence and leaves nothing behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from owner.tool import owner

LONG = "A" * 400
"""Base64 as well as a name, and too long for a file's."""

RUBBISH = {
    "long": LONG,
    "longer": "A" * 5000,
    "not UTF-8": "\udcff\udcfe",
    "nothing": "",
    "missing": "no/such/file",
    "a directory": "directory",
    "an empty file": "empty",
    "noise": "noise",
    "endless": "/dev/zero",
    "a pipe": "pipe",
    "through a file": "empty/file",
}

MEASUREMENT = ("--measurement", "A" * 64)
KEYS = ("--tk", "keys")
VERSION = ("--api", "1.55", "--build", "25")

COMMANDS = {
    "request": ("sign", "?", "directory/none", "--generate", "directory/oca"),
    "owner's key": ("sign", "certificate", "directory/none", "--oca", "certificate", "?"),
    "chain": ("chain", "?"),
    "chain's root": ("chain", "certificate", "--trust", "?"),
    "chain's CA": ("chain", "certificate", "--ca", "?"),
    "session": ("session", "?"),
    "session's policy": ("session", "certificate", "--unverified", "--policy", "?"),
    "session's directory": ("session", "certificate", "--unverified", "--directory", "?/deeper"),
    "measured kernel": ("measure", "--kernel", "?"),
    "measured initrd": ("measure", "--kernel", "idle", "--initrd", "?"),
    "measured firmware": ("measure", "--firmware", "?"),
    "nonce": ("measure", "--kernel", "idle", *KEYS, *VERSION, "--nonce", "?"),
    "measurement": ("validate", "--kernel", "idle", "--measurement", "?", *KEYS, *VERSION),
    "keys": ("validate", "--kernel", "idle", *MEASUREMENT, "--tk", "?", *VERSION),
    "version": ("validate", "--kernel", "idle", *MEASUREMENT, *KEYS, "--api", "?", "--build", "25"),
    "secret": ("secret", "luks-key:?", *MEASUREMENT, *KEYS, "--directory", "directory/none"),
    "secret's name": ("secret", "?:noise", *MEASUREMENT, *KEYS),
    "whole secret": ("secret", "--raw", "?", *MEASUREMENT, *KEYS, "--directory", "directory/none"),
    "header": ("secret", "--open", "?", "noise", *MEASUREMENT, *KEYS),
    "payload": ("secret", "--open", "header", "?", *MEASUREMENT, *KEYS),
    "report": ("report", "?", "--chain", "certificate", "--unverified"),
    "report's chain": ("report", "A" * 280, "--chain", "?", "--unverified"),
    "approved host": ("approve", "?"),
    "approved root": ("approve", "--root", "?"),
    "resume request": ("resume", "?"),
    "receipt": ("receipt", "?"),
}


NO_RUBBISH = {("measured initrd", "empty"), ("measured initrd", "noise")}
"""Any bytes are a file system to who does not mount it."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with what the commands need, but for the one thing that is spoilt."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    (place / "directory").mkdir()
    vector = Path(__file__).parents[1] / "vectors" / "sev" / "ecdh.json"
    (place / "certificate").write_bytes(bytes.fromhex(vector.read_text().split('"source_pdh": "')[1].split('"')[0]))
    for name, content in (("empty", b""), ("noise", os.urandom(70)), ("keys", bytes(32)), ("header", bytes(52))):
        (place / name).write_bytes(content)
    os.mkfifo(place / "pipe")
    return place


@pytest.mark.parametrize("rubbish", RUBBISH.values(), ids=RUBBISH.keys())
def test_every_command_says_what_is_wrong(here: Path, rubbish: str) -> None:
    """Test all commands with one kind of rubbish each: none succeeds, none is our own mistake."""
    before = sorted(here.rglob("*"))
    for name, words in COMMANDS.items():
        if (name, rubbish) in NO_RUBBISH:
            continue
        spoilt = [word.replace("?", rubbish) for word in words]
        answer = owner(*spoilt, status=None)
        assert answer.status in {1, 2}, (name, answer)
        assert answer.complaint, name
        assert len(answer.complaint) < 1500 + 2 * len(rubbish), name
        assert sorted(here.rglob("*")) == before, name
