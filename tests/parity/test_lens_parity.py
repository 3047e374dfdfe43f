"""Logit lens and attribution against transformers' own hidden states, norm and head."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.parity.test_model_parity import pair
from workbench.analysis.attribution import logit_attribution
from workbench.analysis.hidden import residual_norms
from workbench.analysis.lens import logit_lens
from workbench.instrument import capture

IDS = torch.randint(1, 97, (2, 17), generator=torch.Generator().manual_seed(3))
PAD = torch.ones_like(IDS)
PAD[1, :5] = 0


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "left padding"])
@pytest.mark.parametrize("kind", ["mha", "gqa", "mqa"])
@torch.no_grad()
def test_the_lens_is_their_norm_and_head_of_their_hidden_states(kind, padded):
    ours, theirs = pair(kind)
    torch.nn.init.uniform_(theirs.model.norm.weight, 0.5, 1.5)
    ours.load_state_dict(theirs.state_dict())
    keep = PAD if padded else None
    with capture(ours, "embed", "z", "mlp_out", "resid_post") as acts:
        ours(IDS, attention_mask=keep)
    reference = theirs(IDS, attention_mask=keep, output_hidden_states=True)
    # Their last hidden state is already normed: its logits are the output's.
    earlier = [theirs.lm_head(theirs.model.norm(state)) for state in reference.hidden_states[:-1]]
    logprobs = torch.stack((*earlier, reference.logits)).log_softmax(-1)[:, 1, 5:]
    lens = logit_lens(ours, acts, positions=slice(5, None), k=5, row=1)
    np.testing.assert_allclose(lens.top_p, logprobs.topk(5).values.exp(), rtol=1e-4)
    np.testing.assert_allclose(lens.entropy, -(logprobs.exp() * logprobs).sum(-1), rtol=1e-4)
    final = logprobs[-1].expand_as(logprobs)
    kl = F.kl_div(logprobs, final, log_target=True, reduction="none").sum(-1)
    np.testing.assert_allclose(lens.kl, kl, rtol=1e-3, atol=1e-4)
    own = logprobs[:, :-1].gather(2, IDS[1, 6:, None].expand(4, -1, 1))[..., 0]
    np.testing.assert_allclose(lens.next_p[:, :-1], own.exp(), rtol=1e-3)

    frame = logit_attribution(ours, acts, [40, 7], row=1)
    sums = frame.groupby("token")["contribution"].sum()
    np.testing.assert_allclose(sums[[40, 7]], reference.logits[1, -1, [40, 7]], atol=1e-4)
    states = torch.stack(reference.hidden_states[:-1])[:, 1, 5:]
    mine = residual_norms(acts, row=1, keep=PAD[1]).to_numpy()
    np.testing.assert_allclose(mine[:-1], states.norm(dim=-1), rtol=1e-5)
