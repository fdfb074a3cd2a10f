"""Several threads at one handler: channels run beside each other, and nothing slips in beside the end."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from queue import SimpleQueue

import pytest

from sealift.address import PAGE_SIZE, Gpa, RamBlock, RamLayout
from sealift.errors import SealError
from sealift.guest.handler.channels import SealingChannel
from sealift.guest.handler.commit import State
from sealift.guest.handler.sealer import Pull
from sealift.wire.record import MAX_RECORD, RecordKind, StatePiece

from .rig import SOURCE_FACTS, TARGET_FACTS, Hosts, write_some

BIG = RamLayout((RamBlock("ram", Gpa(0), 2048 * PAGE_SIZE),))


def move(hosts: Hosts, channel: int) -> None:
    """One channel's thread on the source and its peer on the target, for one round."""
    slot = memoryview(bytearray(MAX_RECORD))
    number = 0
    while True:
        number += 1
        sealed = hosts.source.pull(Pull(channel, number, 64), slot)
        if not sealed.length:
            return
        hosts.target.open(slot[: sealed.length])


def test_channels_in_threads_of_their_own_move_every_page_once() -> None:
    hosts = Hosts(replace(SOURCE_FACTS, layout=BIG, excluded=()), replace(TARGET_FACTS, layout=BIG, excluded=()))
    hosts.guest.ram[:] = os.urandom(BIG.size)
    hosts.guest.present.add_range(0, BIG.pages)
    vmm = hosts.connect(3)
    hosts.source.begin_epoch()
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(lambda channel: move(hosts, channel), range(3)))
    vmm.deliver([hosts.source.end_epoch(channel) for channel in range(3)])
    vmm.halt()
    hosts.source.begin_epoch()
    ends = [hosts.source.end_epoch(channel) for channel in range(3)]
    vmm.deliver([*ends, *vmm.state(MAX_RECORD), hosts.source.close()])
    assert hosts.same()


def test_the_stream_cannot_end_beside_a_record_that_is_still_being_opened() -> None:
    """Test that a record held up on its way into memory cannot change a guest that was already accepted."""
    hosts = Hosts()
    write_some(hosts.guest)
    vmm = hosts.connect(2)
    vmm.deliver(vmm.round())
    hosts.guest.write(20, b"held up")
    hosts.source.begin_epoch()
    record = vmm.pull(1)
    assert record is not None
    arrived, go_on, outcome = threading.Event(), threading.Event(), SimpleQueue[BaseException | None]()
    window = hosts.landed.window

    class SlowPages:
        """The target's memory, slow to give a window."""

        def __getattr__(self, name: str) -> object:
            return getattr(hosts.landed, name)

        def window(self, first: int, count: int) -> memoryview:
            arrived.set()
            assert go_on.wait(30)
            return window(first, count)

    incoming = hosts.target._incoming
    assert incoming is not None
    incoming.opener._pages = SlowPages()  # type: ignore[assignment]  # the rest is passed through

    def open_slowly() -> None:
        try:
            hosts.target.open(memoryview(record))
        except BaseException as error:  # handed to the test
            outcome.put(error)
        else:
            outcome.put(None)

    thread = threading.Thread(target=open_slowly)
    thread.start()
    assert arrived.wait(30)
    # The token of channel 1 waits behind its record; without it no state is due. So forge what a faulty source
    # could send: state in the epoch that is open.
    channel = SealingChannel(0, incoming.session)
    channel.sequence = incoming.opener._channels[0].sequence
    state = channel.seal_bytes(RecordKind.STATE, incoming.opener.epoch, StatePiece(4, 0, b"stat").encode())
    with pytest.raises(SealError, match="still being opened"):
        hosts.target.open(memoryview(state))
    go_on.set()
    thread.join(30)
    outcome.get(timeout=30)
    assert hosts.target.state is State.ABORTED
