"""Explicit-state checks: small models of our protocols, explored over all interleavings."""
