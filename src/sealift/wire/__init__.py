"""Every byte stream of our own: platform and handler requests, mailbox, sealed records, tokens, streams."""
