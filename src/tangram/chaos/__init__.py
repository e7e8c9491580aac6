"""The rig behind ``tangram chaos`` and ``make chaos``: campaigns, simulation, conformance of
implementations.
"""
