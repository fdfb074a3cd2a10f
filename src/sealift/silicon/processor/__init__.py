"""The secure processor: firmware commands, the platform's identity, and the manufacturer who vouches for it."""
