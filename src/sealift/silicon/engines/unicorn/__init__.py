"""The portable engine: Unicorn executes instructions, our own page walker decides what they reach."""
