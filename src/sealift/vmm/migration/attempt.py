"""What a migration and a snapshot have in common: one attempt, from `run` to completed, failed or cancelled.

Whatever goes wrong, the guest is given back to its machine if that is possible.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable

from sealift.errors import InternalError, SealiftError, sentence
from sealift.vmm.machine import Machine
from sealift.vmm.migration.clock import Clock
from sealift.vmm.migration.livecopy import Watch
from sealift.vmm.migration.parameters import Parameters
from sealift.vmm.migration.stats import MigrationInfo, Statistics
from sealift.vmm.migration.status import ENDED, MigrationStatus, StatusMachine
from sealift.vmm.migration.streamio import bulk_work
from sealift.vmm.migration.throttle import Throttle

_S = MigrationStatus


class CancelledError(SealiftError):
    """The user gave it up."""


class Attempt(ABC):
    """One attempt; `listener` is called with every new status, from the thread that changed it.

    Attributes:
        what: the thing that is attempted, in messages.
        pass_begun: is called with the number of every round that begins, from 1.
        parameters: as they are now; what is about speed may change while it goes on.
    """

    what = "attempt"

    def __init__(
        self, machine: Machine, parameters: Parameters, listener: Callable[[MigrationStatus], None], clock: Clock
    ) -> None:
        self.parameters = parameters
        self.pass_begun: Callable[[int], None] = lambda _: None
        self._machine = machine
        self._clock = clock
        self._status = StatusMachine(listener)
        self._stats = Statistics(machine.layout.size, clock)
        self._lock = threading.RLock()
        self._cancelled = threading.Event()
        self._throttle = Throttle(parameters.max_bandwidth, clock, self._cancelled)
        self._why_cancelled = f"the {self.what} was cancelled"
        self._settled = False

    def info(self) -> MigrationInfo:
        """How it stands, at any time and from any thread."""
        return self._stats.info(self._status.status)

    def adjust(self, change: Callable[[Parameters], Parameters]) -> None:
        """Change what can be changed while it goes on; from any thread.

        Raises:
            UserError: a value is out of range.
        """
        with self._lock:
            self.parameters = self.parameters.going_on(change(self.parameters))
            self._throttle.limit(self.parameters.max_bandwidth)

    def _now(self) -> Parameters:
        return self.parameters

    def run(self, place: str) -> MigrationInfo:
        """Carry the guest to `place`; blocks, so give it a thread of its own.

        Never raises for what can go wrong with it: the answer has its status and the reason.
        """
        self._status.move(_S.SETUP)
        self._stats.begin()
        try:
            with bulk_work():
                self._carry(place)
        except SealiftError as error:
            self._give_up(error)
        except BaseException as error:
            self._give_up(InternalError(f"a bug ended the {self.what} ({type(error).__name__})"))
            raise
        else:
            self._complete()
        finally:
            self._let_go()
            self._machine.throttle.set(0)
            self._stats.cpu_throttle_percentage = 0
        return self.info()

    def cancel(self, why: str | None = None) -> None:
        """Give it up, from any thread; returns at once. Does nothing once it has ended.

        Args:
            why: a sentence, if it is not the user who gives it up.

        Raises:
            UserError: it is too late.
        """
        with self._lock:
            if self._status.status in ENDED or self._cancelled.is_set():
                return
            if self._settled:
                raise self._too_late()
            self._why_cancelled = why or self._why_cancelled
            self._cancelled.set()
            if self._status.status is not _S.NONE:
                self._status.move(_S.CANCELLING)
            self._wake()

    # --- what it is an attempt of ----------------------------------------------------------------------------------

    @abstractmethod
    def _carry(self, place: str) -> None:
        """Do it, or raise."""

    @abstractmethod
    def _done(self) -> None:
        """It was done, and everybody is about to learn it."""

    @abstractmethod
    def _recover(self, error: SealiftError) -> bool:
        """After a failure: let the guest run on here; False if nobody knows whether it may, which `error` led to."""

    @abstractmethod
    def _let_go(self) -> None:
        """Whatever happened: let go of what was opened for it."""

    @abstractmethod
    def _too_late(self) -> SealiftError:
        """Why it can no longer be cancelled."""

    @abstractmethod
    def _wake(self) -> None:
        """Wake whoever waits in `_carry`; it was cancelled."""

    def _complete(self) -> None:
        self._stats.end()
        self._stats.remaining = 0
        self._done()
        self._status.move(_S.COMPLETED)

    # --- on the way ------------------------------------------------------------------------------------------------

    def _watch(self, check: Callable[[], None]) -> Watch:
        """For the copy; `check` is asked beside the user's wish."""

        def both() -> None:
            self._check()
            check()

        def active() -> None:
            self._enter(_S.ACTIVE)
            self._stats.active()

        return Watch(both, active, lambda: self._switch_over(both), self._settle, self.pass_begun, self._early)

    def _early(self) -> bool:
        """Whether the guest is to switch before all of it has moved."""
        return False

    def _switch_over(self, _: Callable[[], None]) -> None:
        """The guest is stopped, and its rest may go."""
        self._enter(_S.DEVICE)

    def _check(self) -> None:
        if self._cancelled.is_set():
            raise CancelledError(self._why_cancelled)

    def _enter(self, status: MigrationStatus) -> None:
        with self._lock:
            self._check()
            self._status.move(status)

    def _settle(self) -> None:
        with self._lock:
            self._check()
            self._settled = True

    def _give_up(self, error: SealiftError) -> None:
        """Take the guest back, if that is still possible, and say why it was necessary."""
        self._stats.error = sentence(error)
        ending = _S.FAILED
        try:
            if self._recover(error) and self._cancelled.is_set():
                self._stats.error, ending = self._why_cancelled, _S.CANCELLED
        except Exception as worse:  # whatever it is, the attempt comes to an end
            self._stats.error += f"; and the guest cannot run on here: {sentence(worse)}"
        self._stats.end()
        with self._lock:
            self._settled = True  # too late for a cancel: it has ended
            if ending is _S.CANCELLED and self._status.status is not _S.CANCELLING:
                self._status.move(_S.CANCELLING)
            self._status.move(ending)
