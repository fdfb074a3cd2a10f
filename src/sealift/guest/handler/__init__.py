"""The migration handler (MH): seals a guest's private memory on one host, opens it on another.

::

    handler.py    MigrationHandler: the only door; asks commit.py whether a step is allowed
      commit.py   states x events, who may run the guest, as data
      exchange.py key exchange             keys.py      what is derived from it
      snapshot.py the same without a peer
      outgoing.py one migration away       incoming.py  one migration to here
      sealer.py   source's records         opener.py    target's records
      channels.py both ends of a channel   rounds.py    pages of one round
      state.py    presence set and machine state, as one blob
      tokens.py   PREPARED, FINAL, STARTED, ABORTED
    mailbox.py    the RFC's two-page door to the same handler
    digest.py     SHA-256 over all of this, for the measured start-up table

Pure logic: no engine, no socket, no thread. What it needs of the guest is in interfaces.py. Calls may come from
several threads, one for each channel and one for control.
"""
