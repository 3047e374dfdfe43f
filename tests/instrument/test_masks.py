"""The mask that is read out of a model's own forward."""

import threading

import pytest
import torch

from tests.conftest import tiny_model
from workbench.instrument.masks import base_model, mask_of_forward
from workbench.model.mask import Mask


def test_a_forward_gives_all_layers_one_mask_so_the_first_layer_s_is_it():
    model, seen = tiny_model(), []

    def note(module, args, kwargs):
        seen.extend(value for value in (*args, *kwargs.values()) if isinstance(value, Mask))

    for layer in model.model.layers:
        layer.register_forward_pre_hook(note, with_kwargs=True)
    model(torch.ones(1, 4, dtype=torch.long))
    assert len(seen) == len(model.model.layers)
    assert len(set(map(id, seen))) == 1


def test_a_forward_of_another_thread_goes_on():
    model, ids, results = tiny_model(), torch.ones(1, 4, dtype=torch.long), []

    def other(module, args, output):
        if threading.current_thread() is threading.main_thread():
            thread = threading.Thread(target=lambda: results.append(model(ids).logits.shape))
            thread.start()
            thread.join(20)

    model.model.hook_embed.register_forward_hook(other)
    assert isinstance(mask_of_forward(model, ids), Mask)
    assert results == [(1, 4, 97)]


def test_a_module_without_a_llama_inside_is_named():
    model = tiny_model()
    assert base_model(model) is base_model(model.model) is model.model
    with pytest.raises(TypeError, match="a workbench Llama model is needed; got Linear"):
        mask_of_forward(torch.nn.Linear(1, 1), torch.ones(1, 1, dtype=torch.long))
