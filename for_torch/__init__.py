"""The PyTorch side, the reference; the only package that imports torch."""
