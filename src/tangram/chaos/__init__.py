"""The rig of ``tangram chaos``: campaigns, simulation, observers, conformance of implementations."""
