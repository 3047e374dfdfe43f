"""RoPEs that have to be consistent, and caches that are not."""

import torch

from workbench.cache import DynamicCache

ROPES = {
    "linear": {"rope_type": "linear", "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "longrope": {
        "rope_type": "longrope",
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [2.0, 3.0, 4.0, 5.0],
        "original_max_position_embeddings": 32,
    },
}


class Dropping(DynamicCache):
    """Forgets position 5."""

    def _kept(self, count):
        return torch.tensor([i for i in range(count) if i != 5])

    def positions(self, layer, new=0):
        return self._kept(len(super().positions(layer, new)))

    def update(self, layer, k, v):
        k, v = super().update(layer, k, v)
        kept = self._kept(k.shape[2])
        return k[:, :, kept], v[:, :, kept]


class ShiftedInOneLayer(DynamicCache):
    """Gives layer 1 the key of the position before, for what was cached by earlier forwards."""

    def update(self, layer, k, v):
        new = k.shape[2]
        k, v = super().update(layer, k, v)
        if layer == 1 and (old := k.shape[2] - new) > 0:
            k = torch.cat((k[:, :, :old].roll(1, 2), k[:, :, old:]), 2)
        return k, v


class Stale(DynamicCache):
    """After crop, the values of the first forgotten position of layer 2 come back."""

    stale = None

    def crop(self, length):
        self.stale = (length, self._values[2][:, :, length : length + 1].clone())
        super().crop(length)

    def update(self, layer, k, v):
        k, v = super().update(layer, k, v)
        if layer == 2 and self.stale is not None:
            at, old = self.stale
            v = v.clone()
            v[:, :, at : at + 1] = old
        return k, v


class ShortRing(DynamicCache):
    """Says that a query sees 7 positions, and gives the first of them 5."""

    name, window = "short", 7

    def positions(self, layer, new=0):
        return super().positions(layer, new)[-new - 4 :]

    def update(self, layer, k, v):
        held = k.shape[2] + 4
        k, v = super().update(layer, k, v)
        return k[:, :, -held:], v[:, :, -held:]


class Failing(DynamicCache):
    def update(self, layer, k, v):
        if layer == 1 and self.length > 10:
            raise IndexError("no slot 10")
        return super().update(layer, k, v)
