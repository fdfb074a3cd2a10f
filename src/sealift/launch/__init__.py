"""What is loaded into a guest before it runs, and what the owner expects to be measured.

Used from both sides of the boundary: the VMM lays the pieces out, the owner recomputes their digest, the
platform reads the start-up area back from private memory.
"""
