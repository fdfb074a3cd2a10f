"""Device models. Each has a ``save()``/``restore(state)`` pair with a version."""
