"""``sealift demo``: the main job from end to end, with real processes, and an honest look for the planted secret.

::

    story.py    the steps, in order ──────► report.py   what came out (and the JSON object)
      ├── stage.py      hosts, owner, relay, VMM processes; removed afterwards, whatever happens
      ├── part.py       what a guest does in it: ledger.py (chain.py computes what it must print) or linux.py
      ├── console.py    what a guest prints
      └── secrecy.py    which places are searched and which marker each must show
            └── places.py, needles.py    how a place is read, what is looked for
    screen.py   shows the steps as they happen
"""
