"""A complete small example: handwritten digits seen by a simulated event camera, and a spiking net trained on them in minutes."""
