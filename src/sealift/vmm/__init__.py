"""Untrusted: the virtual machine monitor. It maps the shared plane and the rings, never the guest's private memory."""
