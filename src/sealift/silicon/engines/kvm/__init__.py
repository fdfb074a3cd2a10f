"""The hardware engine: the kernel's KVM runs the vCPUs, two memslots and a mosaic mapping play the C-bit."""
