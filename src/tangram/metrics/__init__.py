"""Metrics: histograms, the numbers of one moment, pictures, the text for Prometheus.

The parts of the server count. This room adds up, keeps and writes.
"""
