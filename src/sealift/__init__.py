"""Sealift: a virtual machine monitor for guests whose memory is encrypted against the machine that runs them."""
