"""How large a tensor an operation made: whether something that must not hold a whole matrix does."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Largest(TorchDispatchMode):
    """Notes the most bytes that any operation made in one tensor."""

    def __init__(self):
        super().__init__()
        self.nbytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):  # an expanded one has more numbers than memory, a slice less
                self.nbytes = max(self.nbytes, min(tensor.nbytes, tensor.untyped_storage().nbytes()))
        return out
