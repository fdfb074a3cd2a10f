"""Live migration and snapshots: the VMM's side, which moves what it can neither read nor make.

::

    source.py    Migration ─► sending.py ─┐
    snapshot.py  Snapshot ────────────────┴► livecopy.py ─► method.py (Protocols) ─► mh.py ─► ring.py, mailbox.py
                                                │                                └─► psp.py, psp_snapshot.py
                                                └─► shared_ram.py, machine_state.py ─► streamout.py
    streamout.py ─► streamio.py ─► transport.py ─► network, or snapshot_file.py

    target.py  Incoming ──┬► landing.py, receiving.py ─► the same, from the other end
    restore.py restore() ─┘
"""
