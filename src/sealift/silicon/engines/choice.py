"""Which engine a platform runs guests on, and why."""

from __future__ import annotations

from dataclasses import dataclass

from sealift.silicon.engines.given import AUTO, KVM, decide
from sealift.silicon.engines.interface import EngineFactory
from sealift.silicon.engines.kvm.engine import KvmFactory
from sealift.silicon.engines.unicorn.engine import UnicornFactory


@dataclass(frozen=True, slots=True)
class Chosen:
    """An engine's factory, and a sentence about why it is this one; `asked_for` if somebody wanted it by name."""

    factory: EngineFactory
    reason: str
    asked_for: bool = False

    def for_guest(self, *, es: bool, plain: bool = False) -> Chosen:
        """The choice for a guest with SEV-ES or without, or a plain one; what was asked for stays, able or not."""
        if self.asked_for:
            return self
        if es and not self.factory.hides_registers:
            reason = "the guest's policy asks for SEV-ES, and the engine kvm would see its registers"
            return Chosen(UnicornFactory(), reason)
        if plain and not self.factory.runs_plain:
            return Chosen(UnicornFactory(), "the guest is plain, and the engine kvm runs confidential guests alone")
        return self


def choose(name: str) -> Chosen:
    """The engine of that name; with ``auto``, KVM if it passes its self-test, and the portable one otherwise.

    Raises:
        UserError: KVM was asked for and cannot be used.
    """
    engine, reason = decide(name)
    return Chosen(KvmFactory() if engine == KVM else UnicornFactory(), reason, asked_for=name != AUTO)
