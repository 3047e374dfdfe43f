"""Saving a timeline, and opening it with its model, without one, and with another."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import tiny_model
from tests.generation.timelines import IDS, KINDS, Forwards, tiny_timeline
from workbench.generation import Sampler, Timeline
from workbench.instrument import capture
from workbench.instrument.edits import add, zero

DRAWN = Sampler(temperature=1.5, top_k=50, seed=3)


def grown(**options):
    """Twenty tokens, eight sampled ones, and a branch that is the current text."""
    timeline = tiny_timeline(sampler=DRAWN, **options)
    timeline.read(IDS)
    timeline.run(8)
    timeline.branch(23, 40)
    timeline.run(3)
    return timeline


@pytest.fixture
def path(tmp_path):
    return tmp_path / "one.safetensors"


def test_without_a_model_numbers_tree_and_held_logits_are_there(path):
    timeline = grown(logits_budget=5 * 97 * 4)
    timeline.save(path)
    opened = Timeline.load(path)
    assert opened.nodes == timeline.nodes
    assert opened.current == timeline.current
    assert opened.path() == timeline.path()
    assert opened.positions_computed == timeline.positions_computed
    assert (opened.sampler, opened.cache_choice, opened.model, opened.cache) == (DRAWN, ("dynamic", {}), None, None)
    assert torch.equal(opened.logits(), timeline.logits())
    assert opened.candidates(top=5) == timeline.candidates(top=5)
    mine, theirs = timeline.to_pandas(), opened.to_pandas()
    assert theirs.equals(mine)
    assert opened.rewind(4).token == IDS[4]
    with pytest.raises(ValueError, match=r"the logits after node 4 are not in the file, only its hidden state. Open"):
        opened.logits()


@pytest.mark.parametrize(
    "call",
    [
        lambda t: t.step(),
        lambda t: t.run_until(max_new_tokens=2),
        lambda t: t.branch(3, 5),
        lambda t: t.read([1]),
        lambda t: t.edit_token(3, 5),
        lambda t: t.replay(),
        lambda t: t.use(cache="none"),
    ],
)
def test_without_a_model_nothing_is_computed(call, path):
    grown().save(path)
    opened = Timeline.load(path)
    before = (list(opened.nodes), opened.current)
    with pytest.raises(ValueError, match=r"opened without its model: .* Open it with Timeline.load\(path, model="):
        call(opened)
    assert (opened.nodes, opened.current) == before


@pytest.mark.parametrize("cache", [*KINDS, "quantized"])
def test_with_its_model_it_goes_on_to_the_same_tokens(cache, path):
    timeline = grown(cache=cache, cache_config=KINDS.get(cache))
    timeline.save(path)
    opened = Timeline.load(path, timeline.model, timeline.tokenizer)
    forwards = Forwards(timeline.model)
    assert opened.cache_choice == timeline.cache_choice
    torch.testing.assert_close(opened.logits(3), timeline.logits(3))
    assert forwards.calls == 0
    first = opened.step()
    assert first.positions_computed == len(opened.path()), "the cache is not in the file"
    assert [first.token, *(node.token for node in opened.run(6))] == [node.token for node in timeline.run(7)]


def test_a_copy_of_its_model_will_do(path):
    timeline = grown()
    timeline.save(path)
    twin = tiny_model(eos_token_id=None)
    twin.load_state_dict(timeline.model.state_dict())
    assert Timeline.load(path, twin).step().token == timeline.step().token


def test_edits_are_kept_as_json_and_applied_again(path):
    vector = torch.randn(32)
    edits = [zero("z", heads=1, layers=2), add("resid_post", vector, layers=0, positions=slice(3, None))]
    timeline = grown(edits=edits)
    timeline.save(path)
    opened = Timeline.load(path, timeline.model)
    assert [repr(edit) for edit in opened.edits] == [repr(edit) for edit in edits]
    assert [node.token for node in opened.run(5)] == [node.token for node in timeline.run(5)]
    plain = grown()
    assert [node.token for node in plain.path()] != [node.token for node in timeline.path()[:-5]]


def test_edits_that_are_functions_are_refused_and_the_file_stays(path):
    timeline = grown()
    timeline.save(path)
    before = path.read_bytes()
    timeline.use(edits={"z": lambda x: x * 0})
    timeline.step()
    with pytest.raises(
        ValueError, match=r"edits of this timeline are functions .* Take them back with use\(edits=\(\)"
    ):
        timeline.save(path)
    assert path.read_bytes() == before
    timeline.use(edits=())
    timeline.save(path)
    opened = Timeline.load(path, timeline.model)
    # What the function gave is not taken for what the plain model gives.
    assert opened.step().logprob == timeline.step().logprob
    assert len(opened.nodes) == len(timeline.nodes)


def test_another_model_is_refused_naming_both(path):
    timeline = grown()
    timeline.save(path)
    same_size = tiny_model(eos_token_id=None)
    with torch.no_grad():
        same_size.lm_head.weight[3, 3] += 1
    larger = tiny_model(eos_token_id=None, vocab_size=120)
    for model, vocabulary in ((same_size, 97), (larger, 120)):
        words = (
            r"was made with model [0-9a-f]{12} \(3 layers, hidden 32, vocabulary 97\); this model is [0-9a-f]{12} "
            rf"\(3 layers, hidden 32, vocabulary {vocabulary}\). Open it with that model, or without one"
        ).replace("is [", "is model [")
        with pytest.raises(ValueError, match=words):
            Timeline.load(path, model)
    with pytest.raises(TypeError, match=r"model is a str; give the LlamaForCausalLM"):
        Timeline.load(path, "model")


def test_a_missing_truncated_or_foreign_file_is_refused(path, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*one.safetensors. Give one that timeline.save"):
        Timeline.load(path)
    timeline = grown()
    timeline.save(path)
    whole = path.read_bytes()
    for count in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:count])
        with pytest.raises(ValueError, match=r"is damaged or no safetensors file: .* Save the timeline again"):
            Timeline.load(path)
    path.write_text("no timeline at all, but long enough")
    with pytest.raises(ValueError, match=r"is damaged or no safetensors file"):
        Timeline.load(path)
    save_file({"x": torch.ones(2)}, path)
    with pytest.raises(ValueError, match=r"is a safetensors file, but no timeline: it has no manifest"):
        Timeline.load(path)
    with capture(timeline.model, "resid_post") as acts:
        timeline.model(torch.tensor([IDS]))
    acts.save(path)
    with pytest.raises(ValueError, match=r"has format 'workbench-activations', .* this is read: 'workbench-timeline'"):
        Timeline.load(path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m, t: t.pop("hidden"), "does not fit its tensors .*hidden"),
        (lambda m, t: t["nodes.parent"].__setitem__(5, 30), "does not fit its tensors"),
        (lambda m, t: t["nodes.position"].__setitem__(5, 2), "a node is not behind its parent"),
        (lambda m, t: t["nodes.token"].__setitem__(5, 97), "a token is outside the vocabulary"),
        (lambda m, t: m.__setitem__("current", 500), "node 500 does not exist"),
        (lambda m, t: m.__setitem__("version", 9), "version 9; this is read: 'workbench-timeline', version 1"),
        (lambda m, t: m.pop("sampler"), "does not fit its tensors .*sampler"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(change, words, path):
    from safetensors import safe_open

    grown().save(path)
    with safe_open(path, "pt") as file:
        manifest = json.loads(file.metadata()["manifest"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(manifest, tensors)
    save_file(tensors, path, metadata={"manifest": json.dumps(manifest)})
    with pytest.raises(ValueError, match=words):
        Timeline.load(path)


@pytest.mark.parametrize("where", ["save_file", "os.replace"])
def test_a_file_is_there_whole_or_not_at_all(where, path, tmp_path, monkeypatch):
    timeline = grown()
    timeline.save(path)
    before = path.read_bytes()
    timeline.step()

    def fail(*anything, **named):
        if where == "save_file":
            anything[1].write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(f"workbench.generation.timeline_file.{where}", fail)
    with pytest.raises(KeyboardInterrupt):
        timeline.save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_an_empty_timeline_is_not_saved(path):
    with pytest.raises(ValueError, match=r"this timeline is empty. Read a prompt before saving"):
        tiny_timeline().save(path)
    assert not path.exists()


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"there is no folder .*nowhere. Make it, or give a path in another one"
    ):
        grown().save(tmp_path / "nowhere" / "one.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_without_a_tokenizer_the_file_s_texts_are_shown_and_saved_again(path):
    timeline = grown()
    timeline.save(path)
    for model in (None, timeline.model):
        opened = Timeline.load(path, model)
        assert opened.tokenizer is None
        again = path.with_name("two.safetensors")
        opened.save(again)
        assert Timeline.load(again).to_pandas().equals(timeline.to_pandas())
    assert opened.replay().to_pandas().text.tolist() == opened.to_pandas().text[opened.to_pandas().current].tolist()
    opened.force([96])
    opened.save(again)
    assert Timeline.load(again).to_pandas().text.tolist()[-1] == opened.to_pandas().text.tolist()[-1]


def test_without_a_tokenizer_it_says_so(path):
    timeline = grown()
    timeline.save(path)
    opened = Timeline.load(path, timeline.model)
    with pytest.raises(ValueError, match=r"a text needs the tokenizer, and this timeline has none. Give token ids"):
        opened.read("Hello")
    with pytest.raises(ValueError, match=r"stop_string needs the tokenizer, and this timeline has none. Make it with"):
        opened.run_until(stop_string="a")
    bare = Timeline(timeline.model)
    bare.read(IDS)
    bare.save(path)
    assert Timeline.load(path).to_pandas().equals(bare.to_pandas())


def test_edits_there_were_before_are_known_again(path):
    edits = [zero("z", heads=1)]
    timeline = grown(edits=edits)
    timeline.use(edits=())
    timeline.save(path)
    opened = Timeline.load(path, timeline.model)
    assert opened.edits == ()
    opened.use(edits=edits)
    opened.step()
    timeline.use(edits=edits)
    assert timeline.step().token == opened.current.token
