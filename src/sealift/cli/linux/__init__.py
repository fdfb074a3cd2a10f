"""Linux for guests and for the rig: Debian's kernels, fetched but never installed, and small root file systems.

::

    packages.py    apt: the newest package of a pattern, unpacked
       │
    kernels.py     a kernel and the modules it must load, in order; kept in the user's cache (cache.py)
       │
    initramfs.py   busybox, modules, a script and programs as one cpio archive (cpio.py): same inputs, same bytes
       ├── image.py    what `sealift demo --linux` and tests launch: guest_init.sh, linuxload; fetch.py gets its kernel
       └── rig.py      a machine with a real /dev/kvm in QEMU's software emulation: rig_init.sh
"""
