"""What an owner wants to run: given by the owner's user, never by a VMM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sealift.errors import UserError
from sealift.launch.image import GuestRecipe
from sealift.launch.secrets import INSTANCE_ID_SIZE, KEY_SIZE, NO_FLAGS, MigrationFlags, MigrationSecret
from sealift.sev.policy import DEFAULT_POLICY, Policy
from sealift.sev.secret import SecretEntry, build_table

_LARGEST: Final = MigrationSecret(bytes(INSTANCE_ID_SIZE), bytes(KEY_SIZE), bytes(KEY_SIZE)).entry()


@dataclass(frozen=True, slots=True)
class GuestDefinition:
    """One guest.

    Attributes:
        recipe: what must be loaded; its handler digest does not matter, since any accepted one may run.
        policy: what the platform must enforce.
        entries: secrets for the guest itself.
        flags: what the migration handler may do.

    Raises:
        UserError: the secrets do not fit the guest's secret block.
    """

    recipe: GuestRecipe
    policy: Policy = DEFAULT_POLICY
    entries: tuple[SecretEntry, ...] = ()
    flags: MigrationFlags = NO_FLAGS

    def __post_init__(self) -> None:
        needed = len(build_table((*self.entries, _LARGEST)))
        room = self.recipe.areas().secret.size
        if needed > room:
            raise UserError(f"the launch secrets take {needed} bytes of the {room} in the guest's secret block")
