"""Trusted: what runs inside the guest. Start-up code, migration handler, built-in programs."""
