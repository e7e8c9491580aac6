"""The rig behind ``tangram chaos``: campaigns, simulation, conformance."""
