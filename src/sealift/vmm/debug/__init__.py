"""Looking into a guest from outside, as far as its policy allows.

::

    gdb, monitor, dumps, memsave
              │ virtual addresses                       │ physical addresses
              ▼                                         │
    VirtualMemory (`virtual`) ── page walk (`walker`)   │
              │                                         │
              ▼                                         ▼
    DebugMemory (`memory`): plain guests by copy, SEV guests by DBG_DECRYPT and DBG_ENCRYPT

Nothing else of the VMM reaches private memory.
"""
