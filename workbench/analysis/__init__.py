"""Tensors in, small frozen results out. Torch stops here: views and panels see numpy."""
