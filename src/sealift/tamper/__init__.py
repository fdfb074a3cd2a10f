"""A network that is not to be trusted, as a tool: it sits between two hosts and does to a migration what it is told.

::

    source VMM ──► Tamperer ──► Splitter ──► message ──► Rulebook ──► passed on, or dropped, repeated, … ──► target VMM
               ◄──          ◄──                     the same, for what the target says                  ◄──

`messages` cuts both directions into messages by name, `rules` reads what is to be done to which, `relay` does it, and
`events` says what was done. It knows what any network can see, the formats of `sealift.wire`, and no more.
"""
