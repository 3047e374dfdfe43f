"""A copy of a model that is made while the model is captured is a model that nobody looks at."""

import copy
import io
import pickle

import pytest
import torch

from tests.conftest import hooks, tiny_model
from workbench.instrument import POINTS, capture

IDS = torch.randint(1, 97, (2, 12), generator=torch.Generator().manual_seed(3))


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS = {"deepcopy": copy.deepcopy, "pickle": lambda model: pickle.loads(pickle.dumps(model)), "torch.save": saved}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("options", [{}, {"derive": False}], ids=["computed", "stored"])
@torch.no_grad()
def test_a_copy_is_not_captured_and_keeps_no_hook(way, options):
    model = tiny_model()
    plain = model(IDS).logits
    with capture(model, *POINTS, **options) as acts:
        model(IDS)
        twin = way(model)
        twin(IDS[:, :5])
        assert hooks(twin) == 0
        assert torch.equal(twin(IDS).logits, plain)
        late = way(model)
    assert [span.count for span in acts.spans] == [12]
    assert hooks(model) == 0
    late(IDS)
    assert hooks(late) == 0
    assert not any(
        module._forward_pre_hooks_with_kwargs or module._forward_hooks_always_called for module in late.modules()
    )
    assert acts["resid_post", 0].shape[1] == 12
