"""NIR, the Neuromorphic Intermediate Representation (https://neuroir.org): networks from its files, and into them."""
