"""``sealift bench``: measures what the design promises, beside something measured in the same run.

::

    migrate.py   sealed memory by ring and by mailbox ─┬─► moves.py   guests that hop from VMM to VMM
                                                       └─► pipe.py    the raw pipe, the least that moving can cost
    exits.py     exits of a guest, a vCPU's exchange ──► echo.py    the same over a bare socket
    idle.py      what a guest costs that does nothing
"""
