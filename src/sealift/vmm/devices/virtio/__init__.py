"""Virtio devices over MMIO, as in the OASIS standard "Virtual I/O Device", version 1.2.

::

    vCPU's exit ──► VirtioMmio ──registers──► DriverLink ◄──take, complete── model: block, console, rng
                    (the slot)                status, features,
                                              Virtqueues ◄──rings, buffers──► DeviceMemory

A slot's registers and its state are `mmio`; what one driver has set up, from reset to reset, is `link`; the ring format
is `queue`. A model sees chains of buffers, and none of the driver's mistakes: those end in DEVICE_NEEDS_RESET.
"""
