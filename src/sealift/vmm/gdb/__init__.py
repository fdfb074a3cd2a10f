"""gdb's remote serial protocol: a stopped guest's registers and memory, and letting it run and stopping it.

::

    gdb ── socket ── server ── session ── registers, VirtualMemory, DebugMemory
                        │         └────── target: what registers there are
                     packet: frames and their checksums

All guest memory is reached through `sealift.vmm.debug`, as far as the guest's policy allows.
"""
