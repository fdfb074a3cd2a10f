"""Live migration: the VMM's side, which moves what it can neither read nor make.

::

    source.py  Migration ─► sending.py ─► method.py (Protocol) ─► mh.py ─► ring.py, mailbox.py ─► handler
                                 │
                                 └──────► shared_ram.py, machine_state.py ─► streamio.py ─► transport.py ─► network
    target.py  Incoming ──► receiving.py ─► the same, from the other end
"""
