"""How long either side of a migration waits for the other; tests choose less."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Patience:
    """Limits in seconds, each for one whole message.

    Attributes:
        introduction_s: whoever connects says by then who it is, or is dropped.
        answer_s: a target starts a platform, asks the owner and starts the receiver up.
        prepared_s: a target has opened and verified what came; the guest is stopped meanwhile.
        reply_s: a side that has nothing left to do but to answer answers.
        last_word_s: the source took the token, or the target had said why before the connection broke. A token
            that nobody confirms is kept in a file.
    """

    introduction_s: float = 5.0
    answer_s: float = 120.0
    prepared_s: float = 30.0
    reply_s: float = 30.0
    last_word_s: float = 5.0
