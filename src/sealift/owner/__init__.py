"""The guest owner: trusts nobody, verifies platforms and measurements, and releases secrets."""
