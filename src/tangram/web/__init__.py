"""The web site: operator's routes, manifest, API documentation, front ends, blueprints."""
