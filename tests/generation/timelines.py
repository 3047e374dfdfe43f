"""What the tests of timelines share."""

import torch

from tests.conftest import tiny_model
from tests.fakes import CharTokenizer
from workbench.generation import Timeline
from workbench.model.mask import causal, sink, window

IDS = list(range(5, 25))
KINDS = {
    "dynamic": {},
    "static": {"max_cache_len": 90},
    "sliding": {"window": 9},
    "sink": {"window": 8, "sinks": 3},
    "offloaded": {},
    "none": {},
}


def tiny_timeline(kind="gqa", model=None, **options):
    torch.manual_seed(0)
    model = tiny_model(kind, eos_token_id=None) if model is None else model
    return Timeline(model, CharTokenizer(), **options)


@torch.no_grad()
def full_logits(model, ids, cache="dynamic"):
    """Logits after the last token, by one forward over the whole text under the mask of a cache."""
    rules = {"sliding": [causal(), window(9)], "sink": [causal(), window(8), sink(3)]}.get(cache)
    return model(torch.tensor([ids]), attention_mask=rules, use_cache=False).logits[0, -1]


class Forwards:
    """Counts a model's finished forwards and the positions they computed."""

    def __init__(self, model):
        self.calls, self.positions = 0, 0
        self.handle = model.register_forward_hook(self._count, with_kwargs=True)

    def _count(self, module, args, kwargs, output):
        self.calls += 1
        self.positions += (*args, kwargs.get("input_ids"))[0].shape[1]


def stop_after(calls):
    """A should_stop that is true from its `calls`-th question on."""
    asked = iter(range(10**6))
    return lambda: next(asked) >= calls


def snapshot(timeline):
    """All that a failed call may not change; what the cache holds is checked through the logits."""
    current = timeline.current
    return (
        list(timeline.nodes),
        current,
        timeline.positions_computed,
        None if current is None else timeline.logits().tolist(),
        timeline.cache_choice,
        timeline.sampler,
        timeline.edits,
    )
