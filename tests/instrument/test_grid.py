"""Captures addressed as [step, layer, position]."""

import pytest
import torch

from tests.conftest import tiny_model
from workbench.instrument import capture

IDS = torch.randint(1, 97, (2, 12), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def test_layers_that_were_not_captured_are_nan_in_a_slice_and_an_error_alone():
    model = tiny_model()
    with capture(model, "resid_post", layers=[0, 2]) as acts:
        model(IDS)
    grid = acts.grid("resid_post")
    everything = grid[:, :, :]
    assert everything.shape == (1, 3, 12, 2, 32)
    assert everything[:, 1].isnan().all()
    for layer in (0, 2):
        assert torch.equal(everything[0, layer], acts["resid_post", layer].transpose(0, 1))
        assert torch.equal(grid[0, layer, 5], acts["resid_post", layer][:, 5])
    with pytest.raises(IndexError, match=r"'resid_post' was not captured in layer 1; captured are \[0, 2\]"):
        grid[0, 1, 5]
    with pytest.raises(IndexError, match="was not captured in layer 1"):
        grid[:, -2, :]
