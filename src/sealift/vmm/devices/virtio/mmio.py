"""A virtio-mmio slot (virtio 1.2, section 4.2): the registers of one device, or of none.

Only the modern interface (version 2); control registers take aligned 32-bit accesses and ignore others. The interrupt
is edge triggered, which loses nothing: Linux acknowledges first and looks at the rings afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import msgspec

from sealift.errors import StreamError
from sealift.launch.microvm import VIRTIO_BASE, VIRTIO_STRIDE
from sealift.vmm.devices.interface import DeviceMemory, Interrupt
from sealift.vmm.devices.virtio.interface import Model
from sealift.vmm.devices.virtio.link import DRIVER_OK, DriverLink
from sealift.vmm.devices.virtio.queue import QUEUE_SIZE, QueueState, Virtqueue
from sealift.wire.packed import unpack

_MAGIC = int.from_bytes(b"virt", "little")
_VERSION = 2
_VENDOR = int.from_bytes(b"SEAL", "little")

_CONFIG = 0x100
_NO_SHARED_MEMORY = 0xFFFF_FFFF
"""Length and base of a shared memory region that does not exist."""

_LOW = 0xFFFF_FFFF


def slot_window(slot: int) -> range:
    """The addresses of a slot."""
    base = VIRTIO_BASE + slot * VIRTIO_STRIDE
    return range(base, base + VIRTIO_STRIDE)


def _slot_name(slot: int) -> str:
    return f"virtio-mmio-{slot}"


class EmptySlot:
    """A slot without a device: device id 0, which a driver passes over."""

    version = 1

    def __init__(self, slot: int) -> None:
        self.name = _slot_name(slot)
        self.window = slot_window(slot)

    def read(self, address: int, size: int) -> int:
        """Magic, version, and zeros."""
        offset = address - self.window.start
        return {0x000: _MAGIC, 0x004: _VERSION}.get(offset, 0) if size == 4 else 0

    def write(self, address: int, size: int, value: int) -> None:
        """Nobody listens."""

    def save(self) -> bytes:
        """There is no state."""
        return b""

    def restore(self, state: bytes) -> None:
        """Load `save`'s state."""
        if state:
            raise StreamError(f"{self.name} has a device where the guest comes from, and none here")

    def quiesce(self) -> None:
        """Nothing is ever underway."""

    def resume(self) -> None:
        """There is nothing to go on with."""


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    device_id: int
    status: int
    features: int
    interrupt_status: int
    selectors: tuple[int, int, int]
    queues: tuple[QueueState, ...]
    model: bytes


_DEVICE_FEATURES, _DRIVER_FEATURES, _QUEUE = range(3)
"""What the driver selects."""


class VirtioMmio:
    """The slot of one model.

    Attributes:
        link: what the driver has set up.
    """

    version = 1

    def __init__(self, slot: int, model: Model, memory: DeviceMemory, interrupt: Interrupt) -> None:
        self.name = _slot_name(slot)
        self.window = slot_window(slot)
        self._base = self.window.start
        self._model = model
        self._config = model.config()
        self._selected = [0, 0, 0]
        self.link = DriverLink(memory, interrupt, model.features, model.queues, model.chain_limit)
        model.attach(self.link)
        self._readers = self._make_readers()
        self._writers = self._make_writers()

    def read(self, address: int, size: int) -> int:
        """The guest reads a register, or its configuration space."""
        offset = address - self._base
        if offset >= _CONFIG:
            at = offset - _CONFIG
            return int.from_bytes(self._config[at : at + size], "little")
        reader = self._readers.get(offset)
        if reader is None or size != 4:
            return 0
        with self.link.changed:
            return reader()

    def write(self, address: int, size: int, value: int) -> None:
        """The guest writes a register; its configuration space has nothing to write."""
        writer = self._writers.get(address - self._base)
        if writer is not None and size == 4:
            with self.link.changed:
                writer(value & _LOW)

    # --- registers -------------------------------------------------------------------------------------------------

    def _make_readers(self) -> dict[int, Callable[[], int]]:
        link = self.link
        return {
            0x000: lambda: _MAGIC,
            0x004: lambda: _VERSION,
            0x008: lambda: self._model.device_id,
            0x00C: lambda: _VENDOR,
            0x010: self._read_features,
            0x034: lambda: QUEUE_SIZE if self._queue else 0,
            0x044: lambda: int(self._queue is not None and self._queue.ready),
            0x060: lambda: link.interrupt_status,
            0x070: lambda: link.status,
            0x0B0: lambda: _NO_SHARED_MEMORY,
            0x0B4: lambda: _NO_SHARED_MEMORY,
            0x0B8: lambda: _NO_SHARED_MEMORY,
            0x0BC: lambda: _NO_SHARED_MEMORY,
            0x0FC: lambda: 0,  # generation: the configuration never changes
        }

    def _make_writers(self) -> dict[int, Callable[[int], None]]:
        areas = {
            0x080 + 0x10 * area + 4 * half: partial(self._write_area, area, 32 * half)
            for area in range(3)
            for half in range(2)
        }
        return areas | {
            0x014: partial(self._select, _DEVICE_FEATURES),
            0x020: self._write_features,
            0x024: partial(self._select, _DRIVER_FEATURES),
            0x030: partial(self._select, _QUEUE),
            0x038: self._write_size,
            0x044: self._write_ready,
            0x050: self._notify,
            0x064: self._acknowledge,
            0x070: self._write_status,
        }

    def _select(self, what: int, value: int) -> None:
        self._selected[what] = value

    @property
    def _queue(self) -> Virtqueue | None:
        """The selected queue."""
        index = self._selected[_QUEUE]
        return self.link.queues[index] if index < len(self.link.queues) else None

    @property
    def _idle_queue(self) -> Virtqueue | None:
        """The selected queue while it may be changed."""
        queue = self._queue
        return None if queue is None or queue.ready else queue

    def _read_features(self) -> int:
        half = self._selected[_DEVICE_FEATURES]
        return self.link.offered >> 32 * half & _LOW if half < 2 else 0

    def _write_features(self, value: int) -> None:
        half = self._selected[_DRIVER_FEATURES]
        if half < 2:
            self.link.accept(self.link.features & ~(_LOW << 32 * half) | value << 32 * half)

    def _write_size(self, value: int) -> None:
        if (queue := self._idle_queue) is not None:
            queue.size = value

    def _write_area(self, area: int, shift: int, value: int) -> None:
        if (queue := self._idle_queue) is not None:
            queue.areas[area] = queue.areas[area] & ~(_LOW << shift) | value << shift

    def _write_ready(self, value: int) -> None:
        queue = self._queue
        if queue is None:
            return
        if not value & 1:
            queue.stop()
        elif not queue.ready:
            self.link.start_queue(queue)

    def _notify(self, value: int) -> None:
        if value < len(self.link.queues):
            self._model.kick(value)

    def _acknowledge(self, value: int) -> None:
        self.link.interrupt_status &= ~value

    def _write_status(self, value: int) -> None:
        before = self.link.status
        self.link.write_status(value)
        if self.link.status & ~before & DRIVER_OK:
            self._kick_all()

    def _kick_all(self) -> None:
        for queue in range(self._model.queues):
            self._model.kick(queue)

    # --- the machine's side ----------------------------------------------------------------------------------------

    def save(self) -> bytes:
        """Registers, queues and the model's own state; call `quiesce` first."""
        link = self.link
        with link.changed:
            device_features, driver_features, queue = self._selected
            state = _State(
                device_id=self._model.device_id,
                status=link.status,
                features=link.features,
                interrupt_status=link.interrupt_status,
                selectors=(device_features, driver_features, queue),
                queues=tuple(queue.save() for queue in link.queues),
                model=self._model.save(),
            )
        return msgspec.msgpack.encode(state)

    def restore(self, state: bytes) -> None:
        """Load `save`'s state; nothing begins before `resume`."""
        self.link.pause()
        loaded = unpack(state, _State, f"the state of {self.name}")
        if loaded.device_id != self._model.device_id or len(loaded.queues) != len(self.link.queues):
            raise StreamError(f"{self.name} has another device where the guest comes from than here")
        link = self.link
        with link.changed:
            link.status, link.features = loaded.status, loaded.features
            link.interrupt_status = loaded.interrupt_status
            if not link.plausible() or any(selector >> 32 for selector in loaded.selectors):
                raise StreamError(f"the state of {self.name} is not one that a driver can have left")
            self._selected = list(loaded.selectors)
            for queue, queue_state in zip(link.queues, loaded.queues, strict=True):
                queue.restore(queue_state)
            self._model.restore(loaded.model)

    def quiesce(self) -> None:
        """Wait for the chains that are underway; the rest stays in the rings."""
        self.link.pause()

    def resume(self) -> None:
        """Go on with what is in the rings, whoever announced it where."""
        self.link.go_on()
        with self.link.changed:
            self._kick_all()
