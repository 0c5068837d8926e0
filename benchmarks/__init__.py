"""Timings of engines against their peers, of conversion and of imports; ``python -m benchmarks`` runs them."""
