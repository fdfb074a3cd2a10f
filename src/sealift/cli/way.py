"""How a demonstration or a benchmark moves a guest, and what the guest's launch must allow for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sealift.cli.guest_options import DEFAULT_POLICY
from sealift.wire.handover import Method, Transfer

_SENDABLE: Final = "nodbg,sev"
"""Instead of the default policy: any genuine platform may get the guest from another one."""


@dataclass(frozen=True, slots=True)
class Way:
    """A migration method; `transfer` is how pages leave the handler, if it is method mh, and in how many channels."""

    method: Method = Method.MH
    transfer: Transfer = Transfer.RING
    channels: int = 1

    @property
    def name(self) -> str:
        """What carries the pages, for reports."""
        match self.method:
            case Method.MH:
                return self.transfer.value
            case Method.PSP:
                return "packets"
            case Method.PLAIN:
                return "plain"

    @property
    def parameters(self) -> dict[str, object]:
        """Arguments of migrate-set-parameters."""
        return {
            "x_sealift_method": self.method.value,
            "x_sealift_transfer": self.transfer.value,
            "multifd_channels": self.channels,
        }

    @property
    def capabilities(self) -> list[dict[str, object]]:
        """What of migrate-set-capabilities it needs beside."""
        return [{"capability": "multifd", "state": self.channels > 1}]

    @property
    def policy(self) -> str:
        """A policy under which a guest can be moved so."""
        return _SENDABLE if self.method is Method.PSP else DEFAULT_POLICY


RING: Final = Way(Method.MH, Transfer.RING)
MAILBOX: Final = Way(Method.MH, Transfer.MAILBOX)
PACKETS: Final = Way(Method.PSP)
