"""Sealift: a virtual machine monitor for guests whose memory is encrypted against the host that runs them."""
