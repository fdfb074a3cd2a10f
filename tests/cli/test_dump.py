"""``sealift dump``, as its users see it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from harness import Sealift

GUEST = ("--kernel", "ledger", "--memory", "16M", "--append", "ws=8 every=4 burst=4 pause=5000")

Start = Callable[..., Sealift]


def test_a_guest_that_may_be_debugged_is_dumped_and_goes_on(sealift: Start, tmp_path: Path) -> None:
    guest = sealift("run", "--name", "open", "--policy", "nosend", *GUEST)
    guest.stderr.wait_for("guest open runs")
    core = tmp_path / "open.core"
    dumping = sealift("dump", "open", core, "--paging")
    assert dumping.wait() == 0, dumping.report()
    assert re.fullmatch(rf"guest open is dumped to {core}: 16\.0 MiB of memory in \d+\.\d\d s\n", dumping.stdout.text)
    assert core.read_bytes()[:4] == b"\x7fELF"
    part = sealift("dump", "open", tmp_path / "part.core", "--begin", "0xa00000", "--length", "8K", "--json")
    assert part.wait() == 0, part.report()
    assert json.loads(part.stdout.text) == {"status": "completed", "completed": 8192, "total": 8192}
    printed = len(guest.stdout.text)
    guest.stdout.wait_for("ledger 0", printed)

    again = sealift("dump", "open", core)
    assert again.wait() == 1
    assert again.stderr.text == (
        f"sealift: guest open was not dumped: {core} exists already; choose another name, or remove it first\n"
    )
    half = sealift("dump", "open", tmp_path / "half.core", "--begin", "0")
    assert half.wait() == 1
    assert "--begin and --length go together" in half.stderr.text


def test_nodbg_is_told_in_a_sentence_and_ciphertext_is_had(sealift: Start, tmp_path: Path) -> None:
    guest = sealift("run", "--name", "closed", "--policy", "nodbg,es", *GUEST)
    guest.stderr.wait_for("guest closed runs")
    refused = sealift("dump", "closed", tmp_path / "no.core")
    assert refused.wait() == 1
    assert refused.stderr.text == (
        "sealift: guest closed was not dumped: the guest's policy forbids its host to debug it (bit 0, NODBG, is set); "
        "launch a guest that is to be debugged with a policy that has this bit clear\n"
    )
    assert list(tmp_path.glob("*.core")) == []
    raw = sealift("dump", "closed", tmp_path / "raw.core", "--raw")
    assert raw.wait() == 0, raw.report()
    assert raw.stderr.text == (
        "sealift: it holds no registers: they are encrypted (SEV-ES), and the policy forbids to decrypt them\n"
    )
