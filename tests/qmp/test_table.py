"""What a command's handler may end in."""

from __future__ import annotations

from typing import cast

import pytest

from sealift.errors import RefusedError
from sealift.vmm.guest import Guest
from sealift.vmm.qmp.message import QmpError, Request
from sealift.vmm.qmp.table import Command, NoArguments


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (QmpError("as it is"), "as it is"),
        (RefusedError("not now"), "not now"),
        (OSError(28, "No space left"), r"a bug ended the command \(OSError\)"),
        (KeyError("x"), r"a bug ended the command \(KeyError\)"),
    ],
)
def test_whatever_a_handler_raises_its_client_gets_an_answer(raised: Exception, said: str) -> None:
    def handler(_: Guest, __: NoArguments) -> None:
        raise raised

    call = Command("x-test", NoArguments, handler).bind(Request("x-test", {}), cast("Guest", None))
    with pytest.raises(QmpError, match=said):
        call()
