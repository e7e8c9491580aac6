"""Mutants: each removes one guard in a copy of the sources, and named tests must go red.

``hazards``, ``rules``, ``ends`` and ``others`` are the tables. ``workshop`` makes the copies and judges,
``mutation_runner`` runs the tests, and ``witness`` is a pytest plugin that records why a test failed.
"""
