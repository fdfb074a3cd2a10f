"""AMD's SEV formats and cryptography as pure functions: nothing here does I/O or keeps state."""
