"""Firmware for guests: what images there are, which of them fits, and what one supports."""
