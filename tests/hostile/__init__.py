"""Hostile clients against a whole server in a process: ``make hostile``.

``attacks`` has the clients, each in a process of its own, ``scenarios`` the servers that they meet,
``campaign`` runs a scenario beside good clients and judges it, and ``__main__`` prints the table.
"""
