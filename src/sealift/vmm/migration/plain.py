"""Method plain: a guest that is not confidential; its VMM reads it, and nobody encrypts it for its way.

All memory is shared, so it goes in the ordinary `ram` section; registers are sections of their own
(`machine_state`). There are no records. What keeps such a guest from running twice are the words of two honest VMMs,
as with method psp; without TLS everybody on the way can read and change it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from sealift.errors import RefusedError, StreamError, UserError
from sealift.pageset import PageSet
from sealift.vmm.launch import PLAIN_LAUNCH
from sealift.vmm.machine import Machine
from sealift.vmm.migration.method import NO_LEGS, Entered, Record
from sealift.wire.psp import Word

NONCE_SIZE: Final = 16
"""Bytes of a migration's name."""


class PlainSource:
    """The source's end (`method.SourceMethod`)."""

    def __init__(self, machine: Machine, channels: int) -> None:
        """For a guest that goes through so many channels.

        Raises:
            RefusedError: the guest is confidential, or there are several.
        """
        if not machine.spec.plain:
            raise RefusedError(CONFIDENTIAL)
        if channels != 1:
            raise RefusedError("a plain guest has no sealed channels; switch multifd off")
        self._machine = machine
        self._nonce = os.urandom(NONCE_SIZE)
        self._fenced = False

    def identity(self) -> bytes:
        """A name that was drawn for this attempt."""
        return self._nonce

    def excluded(self) -> PageSet:
        """None: there is no handler, and so no mailbox."""
        return PageSet(self._machine.layout.pages)

    def begin_round(self) -> int:
        """There are no private pages."""
        return 0

    def records(self) -> Iterator[Record]:
        """None."""
        return iter(())

    def unsent(self) -> int:
        """None."""
        return 0

    def stop(self) -> None:
        """Nobody needs to know."""

    def end_records(self) -> Iterator[Record]:
        """None: the machine's state goes beside the devices'."""
        return iter(())

    def cancel(self) -> None:
        """Nothing has to be taken back."""
        self._fenced = False

    def start(self) -> bytes:
        """The migration's name."""
        return self._nonce

    def agree(self, answer: bytes) -> bytes:
        """The target says the name again, and so does this side."""
        if answer != self._nonce:
            raise StreamError("the target's answer is to another migration")
        return self._nonce

    def fence(self, prepared: bytes) -> bytes:
        """FINAL: from here on this VMM does not run the guest any more."""
        Word.PREPARED.expect(prepared, self._nonce)
        self._fenced = True
        return Word.FINAL.encode(self._nonce)

    def release(self, answer: bytes) -> bool:
        """STARTED: it runs there."""
        Word.STARTED.expect(answer, self._nonce)
        return True

    def receipt(self) -> bytes:
        """None: there are no keys."""
        return b""

    def resume_request(self) -> bytes:
        """None: its owner has no word in it."""
        raise UserError("only a guest that its own handler was moving can be let run on by its owner (method mh)")

    def fenced(self) -> bool:
        """Whether FINAL was said."""
        return self._fenced

    def resumable(self) -> None:
        """Never."""

    def way_out(self, name: str) -> str:
        """The target's token, if it runs there."""
        return (
            "it is not known whether the guest runs on the target, so it stays stopped here; if it does run there, say "
            f"so with the target's token: sealift token import {name} FILE"
        )

    def late(self) -> None:
        """It moves whole."""


class PlainEntrance:
    """Lets in a guest that is not confidential (`method.Entrance`); whether one is wanted is its host's to say."""

    es = False

    def admit(self, offer: bytes) -> None:
        """Any that has a name."""
        if len(offer) != NONCE_SIZE:
            raise StreamError(f"the source's offer has {len(offer)} bytes in place of a name of {NONCE_SIZE}")

    def enter(self, machine: Machine) -> Entered:  # noqa: ARG002  # nothing is to be done with it
        """Nothing is launched."""
        return Entered(PLAIN_LAUNCH, PlainTarget())


class PlainTarget:
    """The target's end (`method.TargetMethod`)."""

    def __init__(self) -> None:
        self._nonce = b""

    def answer(self, offer: bytes) -> bytes:
        """The migration's name, as it was heard."""
        self._nonce = offer
        return offer

    def agreed(self, confirm: bytes) -> None:
        """The name once more."""
        if confirm != self._nonce:
            raise StreamError("the source's confirmation is of another migration")

    def space(self, length: int) -> memoryview:
        """There is none."""
        raise StreamError(f"a record of {length} bytes came for a plain guest, which has no sealed records")

    def take(self, length: int) -> None:
        """See `space`."""
        self.space(length)

    def settle(self) -> None:
        """Nothing is underway."""

    def answer_leg(self, _: bytes) -> bytes:
        """Never."""
        raise RefusedError(NO_LEGS)

    def prepared(self) -> bytes:
        """PREPARED: every section that is due has come, or this would not be asked."""
        return Word.PREPARED.encode(self._nonce)

    def ready(self, final: bytes) -> None:
        """FINAL: the source does not run it any more."""
        Word.FINAL.expect(final, self._nonce)

    def started(self) -> bytes:
        """STARTED."""
        return Word.STARTED.encode(self._nonce)

    def receipt(self) -> bytes:
        """None, as on the source."""
        return b""

    def abort(self) -> bytes:
        """Before FINAL no word is needed; after it there is none."""
        return b""

    def late(self) -> None:
        """It came whole."""


CONFIDENTIAL: Final = (
    "the guest is confidential, and method plain would show its memory to everybody; choose method mh or psp"
)
NOT_CONFIDENTIAL: Final = (
    "the guest is plain: it has no migration handler, and no secure processor knows it; choose method plain"
)
