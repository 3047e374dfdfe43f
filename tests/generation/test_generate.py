from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from tests.conftest import tiny_config, tiny_model
from workbench.cache import DynamicCache
from workbench.generation import generate

IDS = torch.randint(1, 97, (2, 7), generator=torch.Generator().manual_seed(3))


class Counting:
    """A stand-in for a model that always continues n with n + 1, and remembers how it was called."""

    def __init__(self, **changes):
        self.config = tiny_config(**{"eos_token_id": None, "pad_token_id": None, **changes})
        self.calls = []

    def __call__(self, input_ids, **options):
        self.calls.append({"ids": input_ids, **options})
        if options["past_key_values"] is not None:  # so that the cache counts what was read
            piece = torch.zeros(len(input_ids), 2, input_ids.shape[1], 8)
            options["past_key_values"].update(0, piece, piece)
        return SimpleNamespace(logits=F.one_hot(input_ids[:, -1:] + 1, 97).float() * 20)


def counted(ids, model=None, **options):
    return generate(model or Counting(), torch.tensor(ids), **options).tolist()


def test_the_prompt_comes_back_with_its_continuation():
    assert counted([[4, 5], [20, 30]], max_new_tokens=3) == [[4, 5, 6, 7, 8], [20, 30, 31, 32, 33]]


@pytest.mark.parametrize("kind", ["mha", "gqa", "mqa"])
@torch.no_grad()
def test_a_real_model_continues_with_its_own_most_likely_tokens(kind):
    model = tiny_model(kind, eos_token_id=None)
    ids = IDS
    for _ in range(8):  # without a cache, everything computed afresh
        ids = torch.cat((ids, model(ids, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)), 1)
    assert generate(model, IDS, max_new_tokens=8).tolist() == ids.tolist()
    assert model.generate(IDS, max_new_tokens=8).tolist() == ids.tolist()


@pytest.mark.parametrize("kind", ["mha", "gqa", "mqa"])
def test_a_left_padded_row_continues_as_it_does_alone(kind):
    model = tiny_model(kind, eos_token_id=None)
    mask = torch.ones_like(IDS)
    mask[0, :3] = 0
    batch = generate(model, IDS, attention_mask=mask, max_new_tokens=8)
    assert batch[0, 7:].tolist() == generate(model, IDS[:1, 3:], max_new_tokens=8)[0, 4:].tolist()
    assert batch[1].tolist() == generate(model, IDS[1:], max_new_tokens=8)[0].tolist()
    assert batch[0].tolist() != generate(model, IDS[:1], max_new_tokens=8)[0].tolist(), "the mask counts"


def test_only_the_new_token_is_computed_after_the_prompt_and_only_its_logits():
    model, cache = Counting(), DynamicCache()
    mask = torch.tensor([[0, 1], [1, 1]])
    counted([[0, 5], [20, 30]], model, attention_mask=mask, max_new_tokens=3, past_key_values=cache)
    assert [call["ids"].tolist() for call in model.calls] == [[[0, 5], [20, 30]], [[6], [31]], [[7], [32]]]
    assert [call["position_ids"].tolist() for call in model.calls] == [[[0, 0], [0, 1]], [[1], [2]], [[2], [3]]]
    assert [call["attention_mask"].tolist()[0] for call in model.calls] == [[0, 1], [0, 1, 1], [0, 1, 1, 1]]
    assert all(call["past_key_values"] is cache for call in model.calls)
    assert all(call["logits_to_keep"] == 1 for call in model.calls)


def test_a_row_that_has_ended_is_filled_with_padding_until_all_have():
    out = counted([[4], [2], [6]], max_new_tokens=20, eos_token_id=[7, 90], pad_token_id=0)
    assert out == [[4, 5, 6, 7, 0, 0], [2, 3, 4, 5, 6, 7], [6, 7, 0, 0, 0, 0]]


def test_it_stops_as_soon_as_every_row_has_ended():
    model = Counting()
    counted([[5], [6]], model, max_new_tokens=20, eos_token_id=7)
    assert len(model.calls) == 2


def test_an_end_token_in_the_prompt_ends_nothing():
    assert counted([[7, 8]], max_new_tokens=3, eos_token_id=7) == [[7, 8, 9, 10, 11]]


def test_no_end_token_never_ends():
    assert counted([[4]], max_new_tokens=5) == [[4, 5, 6, 7, 8, 9]]


@pytest.mark.parametrize(
    ("config", "options", "filled_with"),
    [
        ({"eos_token_id": 7, "pad_token_id": 3}, {}, 3),
        ({"eos_token_id": 7, "pad_token_id": 3}, {"pad_token_id": 0}, 0),
        ({"eos_token_id": 7}, {}, 7),
        ({"eos_token_id": [7, 8]}, {}, 7),
        ({"eos_token_id": 50}, {"eos_token_id": (7,)}, 7),
        ({"pad_token_id": 0, "eos_token_id": 50}, {"eos_token_id": 7}, 0),
    ],
    ids=["config's", "given", "end token", "first end token", "given end token", "zero is a token"],
)
def test_what_fills_an_ended_row(config, options, filled_with):
    out = counted([[6], [4]], Counting(**config), max_new_tokens=3, **options)
    assert out == [[6, 7, filled_with, filled_with], [4, 5, 6, 7]]


def test_the_last_token_may_reach_the_models_length():
    assert len(counted([[1] * 5], Counting(max_position_embeddings=8), max_new_tokens=3)[0]) == 8


def test_seeds_repeat_and_differ():
    model = tiny_model(eos_token_id=None)
    options = dict(max_new_tokens=12, do_sample=True, temperature=2.0)
    first = generate(model, IDS, seed=1, **options).tolist()
    assert generate(model, IDS, seed=1, **options).tolist() == first
    assert generate(model, IDS, seed=2, **options).tolist() != first


def test_without_a_seed_the_global_generator_is_drawn_from():
    model = tiny_model(eos_token_id=None)
    options = dict(max_new_tokens=12, do_sample=True, temperature=2.0)
    torch.manual_seed(1)
    first = generate(model, IDS, **options).tolist()
    assert generate(model, IDS, **options).tolist() != first
    torch.manual_seed(1)
    assert generate(model, IDS, **options).tolist() == first


def test_sampling_options_count_only_when_sampling():
    model = tiny_model(eos_token_id=None)
    greedy = generate(model, IDS, max_new_tokens=6).tolist()
    with pytest.warns(UserWarning, match="ignored"):
        assert generate(model, IDS, max_new_tokens=6, temperature=5.0, top_p=0.1).tolist() == greedy
    assert generate(model, IDS, max_new_tokens=6, do_sample=True, top_k=1, seed=0).tolist() == greedy


def test_nothing_is_recorded_for_gradients():
    model = tiny_model()
    cache = DynamicCache()
    generate(model, IDS, max_new_tokens=3, past_key_values=cache)
    assert not cache.keys(0).requires_grad


def test_the_cache_given_is_the_one_filled():
    cache = DynamicCache()
    out = generate(tiny_model(eos_token_id=None), IDS, max_new_tokens=4, past_key_values=cache)
    assert cache.length == out.shape[1] - 1, "the last token has not been read"


def test_a_cache_is_as_it_was_after_an_error():
    model = tiny_model(eos_token_id=None)
    for options in ({}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}):
        cache = DynamicCache()
        with torch.no_grad():
            model(IDS[:, :4], past_key_values=cache)
        before = [cache.keys(i).clone() for i in range(3)]
        calls = []

        def fail(ids, scores, calls=calls):
            calls.append(1)
            if len(calls) == 4:
                raise RuntimeError("planted")
            return scores

        with pytest.raises(RuntimeError, match="planted"):
            generate(model, IDS, past_key_values=cache, max_new_tokens=9, logits_processor=[fail], **options)
        assert cache.length == 4
        assert all(torch.equal(cache.keys(i), before[i]) for i in range(3))
        out = generate(model, IDS, past_key_values=cache, max_new_tokens=3)
        assert out.tolist() == generate(model, IDS, max_new_tokens=3).tolist()


def test_the_prompt_is_read_once_for_all_beams():
    model = tiny_model(eos_token_id=None)
    sizes = []
    handle = model.model.embed_tokens.register_forward_hook(lambda m, args, out: sizes.append(tuple(out.shape[:2])))
    generate(model, IDS, max_new_tokens=3, num_beams=4)
    handle.remove()
    assert sizes == [(2, 7), (8, 1), (8, 1)]


def test_without_padding_no_mask_is_built():
    model = Counting()
    counted([[4, 5]], model, attention_mask=torch.ones(1, 2), max_new_tokens=4)
    assert {call["attention_mask"] for call in model.calls} == {None}
    assert {call["position_ids"] for call in model.calls} == {None}


def test_texts_longer_than_the_spare_room():
    assert counted([[0] * 3], max_new_tokens=1)[0] == [0, 0, 0, 1]
    model = tiny_model(eos_token_id=None, max_position_embeddings=700)
    out = generate(model, IDS[:1], max_new_tokens=560, do_sample=True, seed=0)
    assert out.shape == (1, 567)
    assert out[:, :7].tolist() == IDS[:1].tolist()


def test_a_cache_filled_before_goes_on_with_the_whole_text():
    model = tiny_model(eos_token_id=None)
    cache = DynamicCache()
    first = generate(model, IDS, max_new_tokens=4, past_key_values=cache)
    out = generate(model, first, max_new_tokens=4, past_key_values=cache)
    assert out.tolist() == generate(model, IDS, max_new_tokens=8).tolist()


def test_max_time_ends_a_text():
    model = Counting()
    assert len(counted([[4]], model, max_new_tokens=50, max_time=1e-9)[0]) == 2


def test_the_prompt_is_not_written_into():
    ids = IDS.clone()
    generate(tiny_model(eos_token_id=None), ids, max_new_tokens=4, num_beams=2)
    generate(tiny_model(eos_token_id=None), ids, max_new_tokens=4)
    assert torch.equal(ids, IDS)


def test_raw_logits_are_kept_from_processors_that_write_in_place():
    def in_place(ids, scores):
        scores[:] = -1.0
        scores[:, 3] = 5.0
        return scores

    model = tiny_model(eos_token_id=None)
    asked = dict(return_dict_in_generate=True, output_logits=True, output_scores=True, max_new_tokens=2)
    out = generate(model, IDS, logits_processor=[in_place], **asked)
    assert out.sequences[:, -2:].tolist() == [[3, 3], [3, 3]]
    with torch.no_grad():
        torch.testing.assert_close(out.logits[0], model(IDS).logits[:, -1])
    assert out.scores[0][0, 3] == 5.0


def test_outputs_by_attribute_key_and_position():
    asked = dict(return_dict_in_generate=True, output_scores=True, max_new_tokens=3)
    out = generate(tiny_model(eos_token_id=None), IDS, **asked)
    assert out.keys() == ["sequences", "scores", "past_key_values"]
    assert out[0] is out.sequences is out["sequences"]
    assert len(out.scores) == 3
    beams = generate(tiny_model(eos_token_id=None), IDS, num_beams=2, **asked)
    assert beams.keys() == ["sequences", "sequences_scores", "scores", "beam_indices", "past_key_values"]


def test_a_stop_in_one_row_pads_it_until_the_other_ends():
    ends = lambda ids, scores: ids[:, -1] == torch.tensor([7, 9])  # noqa: E731
    options = dict(max_new_tokens=20, stopping_criteria=[ends], eos_token_id=50, pad_token_id=0)
    assert counted([[4], [4]], **options) == [[4, 5, 6, 7, 0, 0], [4, 5, 6, 7, 8, 9]]


@pytest.mark.parametrize(
    ("options", "ignored"),
    [
        ({"temperature": 0.5, "top_p": 0.3}, "temperature, top_p counts with do_sample=True only"),
        ({"length_penalty": 2.0}, "length_penalty counts with num_beams above 1 only"),
        ({"output_scores": True}, "output_scores counts with return_dict_in_generate=True only"),
    ],
    ids=["draws", "beams", "outputs"],
)
def test_options_without_effect_are_named(options, ignored):
    with pytest.warns(UserWarning, match=ignored):
        counted([[4]], max_new_tokens=2, **options)


@pytest.mark.parametrize("length", [6, 12, 30], ids=lambda n: f"{n} tokens at most")
def test_an_answer_that_comes_one_step_late_changes_nothing(monkeypatch, length):
    """On CUDA the host does not wait to be told that all rows have ended; here the same is done on the CPU."""
    from workbench.generation import loop

    model = tiny_model(eos_token_id=list(range(1, 14)))
    asked = dict(max_new_tokens=length, return_dict_in_generate=True, output_scores=True, do_sample=True, seed=3)
    expected = generate(model, IDS, **asked)
    made, read = loop._Stop.__init__, []

    def late(self, task, device):
        made(self, task, device)
        self._late = True

    monkeypatch.setattr(loop._Stop, "__init__", late)
    told = SimpleNamespace(synchronize=lambda: read.append(1))
    monkeypatch.setattr(loop._Stop, "_ask", staticmethod(lambda ended: (ended.all(), told)))
    found = generate(model, IDS, **asked)
    assert read, "the late answer was looked at"
    assert found.sequences.tolist() == expected.sequences.tolist()
    assert len(found.scores) == len(expected.scores)
    assert found.past_key_values.length == expected.past_key_values.length
    assert (expected.sequences.shape[1] < 7 + length) == (length > 12)
