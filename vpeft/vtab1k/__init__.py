"""VTAB-1k (Zhai et al., 2019, arXiv:1910.04867) from TFDS, the original archives or a community folder, as PNG."""
