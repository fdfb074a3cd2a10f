"""The command line: one thin module a command, and what they share.

Modules here import what is heavy (numpy, cryptography, rich) inside functions, so that ``--help`` and ``ps`` start
in a moment.
"""
