"""x86-64 CPU models: their features, ABI levels, and which of them a guest can move between."""
