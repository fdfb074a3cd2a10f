"""The platform process: the silicon side of one guest, in a process that a VMM can talk to but not look into."""
