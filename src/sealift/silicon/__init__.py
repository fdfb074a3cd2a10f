"""Trusted: what plays the silicon. Runs only inside the platform process."""
