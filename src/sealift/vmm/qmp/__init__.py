"""QMP, QEMU's machine protocol: JSON over a Unix socket, with QEMU's names, shapes and error classes.

::

    client ──bytes──► framing ──objects──► session ──► command table ──► commands/ ──► Guest
       ▲                                      │                                          │
       └────────── bounded buffer ◄───────────┴───────────────── events ◄────────────────┘

`sealift.vmm.qmp.commands` has one module a chapter of QEMU's schema (control, run-state, machine, migration, sev).
Commands that QEMU does not have are named ``x-sealift-…``.
"""
