"""``sealift owner`` in this process, as its users call it: words in, what was printed and the exit status out."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest

from sealift.cli.main import main


@dataclass(frozen=True)
class Answer:
    """What a command did."""

    status: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The last line on standard error, which says what is wrong."""
        last = self.err.splitlines()[-1]
        assert last.startswith("sealift: ")
        assert "Traceback" not in self.err
        assert "[Errno" not in self.err
        return last


def owner(*words: str | Path | int, status: int | None = 0) -> Answer:
    """Run ``sealift owner ...``; it must end with `status`, if one is given."""
    out, err = io.StringIO(), io.StringIO()
    argv = ["sealift", "owner", *map(str, words)]
    with patch("sys.argv", argv), redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main()
    answer = Answer(int(ended.value.code or 0), out.getvalue(), err.getvalue())
    assert status is None or answer.status == status, f"{argv} ended with {answer}"
    return answer
