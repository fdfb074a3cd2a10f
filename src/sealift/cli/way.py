"""How a demonstration or a benchmark moves a guest, and what the guest's launch must allow for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sealift.wire.handover import Method, Transfer

_SENDABLE: Final = "nodbg,sev"
"""The default policy, but any genuine platform may get the guest from another one."""


@dataclass(frozen=True, slots=True)
class Way:
    """A migration method; `transfer` is how pages leave the handler, if it is method mh."""

    method: Method = Method.MH
    transfer: Transfer = Transfer.RING

    @property
    def name(self) -> str:
        """What carries the pages, for reports."""
        match self.method:
            case Method.MH:
                return self.transfer.value
            case Method.PSP:
                return "packets"

    @property
    def parameters(self) -> dict[str, object]:
        """Arguments of migrate-set-parameters."""
        return {"x_sealift_method": self.method.value, "x_sealift_transfer": self.transfer.value}

    @property
    def launch_options(self) -> list[str]:
        """Options of ``sealift run`` without which a guest cannot be moved so."""
        return ["--policy", _SENDABLE] if self.method is Method.PSP else []


RING: Final = Way(Method.MH, Transfer.RING)
MAILBOX: Final = Way(Method.MH, Transfer.MAILBOX)
PACKETS: Final = Way(Method.PSP)
