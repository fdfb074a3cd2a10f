"""Packets of the secure processor, in ring slots: what is between its commands and the VMM's memory.

Outgoing packets are copied to slots that the VMM can only read; incoming ones are copied out of slots that the VMM
can write before anything looks at them.
"""

from __future__ import annotations

from sealift.errors import RefusedError, StreamError
from sealift.silicon.process.ring import SLOT_SIZE, SLOTS, Ring, incoming_ring, outgoing_ring
from sealift.silicon.processor.send import Packet
from sealift.wire.platform import PacketsOpened
from sealift.wire.psp import PACKET_FRONT, PacketParts, nonce_of


class PacketDesk:
    """Lays packets of one session out, and picks them up.

    Attributes:
        shape: of both rings.
    """

    shape = PacketsOpened(SLOTS, SLOT_SIZE)

    def __init__(self) -> None:
        self._outgoing: Ring = outgoing_ring()
        self._incoming: Ring = incoming_ring()
        self._nonce = b""

    @property
    def descriptors(self) -> tuple[int, int]:
        """The outgoing ring's memfd and the incoming one's."""
        return self._outgoing.plane.fd, self._incoming.plane.fd

    def begin(self, session_blob: bytes) -> None:
        """Packets are of this session from now on."""
        self._nonce = nonce_of(session_blob)

    def lay_out(self, packet: Packet, slot: int) -> int:
        """Put a packet into an outgoing slot; its length.

        Raises:
            RefusedError: there is no such slot.
        """
        length = PACKET_FRONT + len(packet.payload)
        out = self._outgoing.slot(slot)
        out[:PACKET_FRONT] = self._nonce + packet.header
        out[PACKET_FRONT:length] = packet.payload
        return length

    def pick_up(self, slot: int, offset: int, length: int) -> PacketParts:
        """Copy a packet with a payload of `length` bytes out of an incoming slot.

        Raises:
            RefusedError: there is no such slot, or it does not lie in it.
            StreamError: it is of another session.
        """
        end = offset + PACKET_FRONT + length
        if not 0 <= offset < offset + PACKET_FRONT < end <= SLOT_SIZE:
            raise RefusedError(f"no packet of {length} bytes fits at {offset} in a slot of {SLOT_SIZE}")
        parts = PacketParts.decode(bytes(self._incoming.slot(slot)[offset:end]))
        if parts.nonce != self._nonce:
            raise StreamError("the packet is of another session than the one that began here")
        return parts
