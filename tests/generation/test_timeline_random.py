"""A thousand random operations: after each of them the numbers are those of a fresh forward, and nothing is lost."""

import random
import time

import pytest
import torch

from tests.conftest import hooks, tiny_model
from tests.generation.timelines import KINDS as LOSSLESS
from tests.generation.timelines import Forwards, full_logits, stop_after, tiny_timeline
from workbench.generation import Sampler, Timeline
from workbench.instrument import Cancelled

LONGEST = 60
KINDS = {**LOSSLESS, "quantized": {"bits": 8, "group_size": 8, "residual_length": 8}}


class Walk:
    """Random operations on a timeline, and what is expected of it."""

    def __init__(self, path, seed=0):
        self.random = random.Random(seed)
        torch.manual_seed(0)
        model = tiny_model(eos_token_id=None).double()  # so that rounding hides nothing
        self.timeline = tiny_timeline(model=model, logits_budget=40 * 97 * 4, sampler=Sampler(temperature=1.5, seed=7))
        self.model = model
        self.path = path
        self.kind = "dynamic"
        self.kinds = {}  # node → the cache that what is held of it was computed with
        self.nodes = []
        self.counts = {}
        self.deepest = 0
        self.forwards = Forwards(self.model)
        self.grow(lambda t, **o: t.read(list(range(1, 12)), **o))

    def grow(self, operation, parent="current"):
        """An operation that reads: a third of them is stopped half way first, or fails."""
        timeline = self.timeline
        parent = timeline.current if parent == "current" else parent
        if self.random.random() < 0.3:
            before = (list(timeline.nodes), timeline.current, timeline.positions_computed)
            self.interrupt(operation)
            assert (timeline.nodes, timeline.current, timeline.positions_computed) == before
        computed, seen = timeline.positions_computed, self.forwards.positions
        operation(timeline)
        assert timeline.positions_computed - computed == self.forwards.positions - seen
        for node in (parent, *timeline.nodes[len(self.nodes) :]):
            if node is not None:
                self.kinds[node.index] = self.kind
        self.kinds[timeline.current.index] = self.kind

    def interrupt(self, operation):
        if self.random.random() < 0.5:
            with pytest.raises(Cancelled):
                operation(self.timeline, should_stop=stop_after(self.random.randrange(3)))
            return
        layer = self.model.model.layers[self.random.randrange(3)]

        def fail(module, args, *output):
            raise self.random.choice([KeyboardInterrupt, RuntimeError])("planted")

        part = self.random.choice([layer, layer.mlp, self.model.lm_head])
        handle = part.register_forward_hook(fail)
        with pytest.raises((KeyboardInterrupt, RuntimeError), match="planted"):
            operation(self.timeline)
        handle.remove()

    def any_node(self):
        return self.random.choice(self.timeline.nodes)

    def token(self):
        return self.random.randrange(1, 97)

    # --- the operations

    def step(self):
        self.grow(lambda t, **o: t.step(**o))

    def read(self):
        ids = [self.token() for _ in range(self.random.randrange(1, 9))]
        self.grow(lambda t, **o: t.read(ids, **o))

    def force(self):
        ids = [self.token() for _ in range(self.random.randrange(1, 4))]
        self.grow(lambda t, **o: t.force(ids, **o))

    def branch(self):
        node, token = self.any_node(), self.token()
        self.grow(lambda t, **o: t.branch(node, token, **o), node)

    def edit_token(self):
        path = self.timeline.path()
        place, token = self.random.randrange(len(path)), self.token()
        self.grow(lambda t, **o: t.edit_token(place, token, **o), path[place - 1] if place else None)

    def rewind(self):
        calls, computed = self.forwards.calls, self.timeline.positions_computed
        assert self.timeline.rewind(self.any_node()) is self.timeline.current
        assert (self.forwards.calls, self.timeline.positions_computed) == (calls, computed)

    def switch(self):
        calls = self.forwards.calls
        self.kind = self.random.choice(list(KINDS))
        self.timeline.use(cache=self.kind, cache_config=KINDS[self.kind])
        assert self.forwards.calls == calls

    def sampler(self):
        self.timeline.use(sampler=Sampler(temperature=self.random.choice([0.0, 0.7, 1.5]), seed=self.token()))

    def reopen(self):
        before = self.timeline
        before.save(self.path)
        self.timeline = Timeline.load(self.path, self.model, before.tokenizer)
        assert self.timeline.nodes == before.nodes
        assert self.timeline.current == before.current

    # --- what must hold

    def check(self):
        timeline = self.timeline
        assert timeline.nodes[: len(self.nodes)] == self.nodes
        self.nodes = list(timeline.nodes)
        path = timeline.path()
        self.deepest = max(self.deepest, len(path))
        expected = full_logits(self.model, [node.token for node in path], self.kinds[path[-1].index]).float()
        if self.kinds[path[-1].index] == "quantized":
            # Its numbers depend on how a text was cut into forwards: near those of the exact cache is all there is.
            assert torch.cosine_similarity(timeline.logits(), expected, dim=0) > 0.99
        else:
            torch.testing.assert_close(timeline.logits(), expected, atol=1e-5, rtol=1e-5)
        for node in path[1:]:
            assert timeline.nodes[node.parent].position == node.position - 1
        assert timeline.nbytes <= self.bound()
        assert hooks(self.model) == 1, "only the one that counts"

    def bound(self):
        config, spare = self.model.config, 64
        room = KINDS[self.kind].get("max_cache_len", self.deepest + max(spare, self.deepest // 4))
        cache = 0 if self.kind == "none" else 2 * 3 * config.kv_heads * config.d_head * 8 * room
        logits = self.timeline._engine.store.budget + config.vocab_size * 4
        return cache + logits + len(self.timeline.nodes) * config.hidden_size * 8


OPERATIONS = (
    ("step", 40), ("read", 6), ("force", 5), ("branch", 10), ("edit_token", 8), ("rewind", 16), ("switch", 6),
    ("sampler", 4), ("reopen", 5),
)  # fmt: skip


def test_a_thousand_operations_keep_every_number_right_and_lose_nothing(tmp_path):
    began = time.process_time()
    walk = Walk(tmp_path / "walk.safetensors")
    names, weights = zip(*OPERATIONS, strict=True)
    for _ in range(1000):
        name = walk.random.choices(names, weights)[0]
        if walk.timeline.current.position > LONGEST:
            name = "rewind"
        walk.counts[name] = walk.counts.get(name, 0) + 1
        getattr(walk, name)()
        walk.check()
    assert set(walk.counts) == set(names)
    assert min(walk.counts.values()) >= 30
    assert len(walk.timeline.nodes) > 500
    assert time.process_time() - began < 20
