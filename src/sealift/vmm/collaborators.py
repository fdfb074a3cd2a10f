"""Who a guest's users reach through it, without the guest knowing more of them."""

from __future__ import annotations

from typing import Protocol


class LateArrival(Protocol):
    """What a user can have done about pages that come behind the guest (post-copy)."""

    def pause(self) -> None:
        """End the connections."""

    def recover(self, uri: str) -> None:
        """Await the source at `uri`."""


class Debugging(Protocol):
    """Serves gdb, where and for as long as somebody wants it."""

    def serve_at(self, uri: str) -> str:
        """Serve it at `uri`, and no longer where it was served before; the address.

        Raises:
            UserError: that cannot be listened at, or it is gdb itself that asks.
        """

    def end(self) -> None:
        """Serve it nowhere.

        Raises:
            UserError: it is gdb itself that asks.
        """
