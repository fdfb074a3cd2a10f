"""Subcommands: each module has one `command`."""
