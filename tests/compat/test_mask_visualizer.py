"""AttentionMaskVisualizer: what the documented call prints, for every source it takes."""

import fnmatch
import io
import json
import subprocess
import sys
import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.checkpoints.conftest import byte_level_metadata
from tests.conftest import hooks, tiny_config, tiny_model
from workbench.checkpoints import hub
from workbench.checkpoints.gguf import GGUFFile
from workbench.checkpoints.gguf_vocab import tokenizer_from_gguf
from workbench.checkpoints.load import Loaded
from workbench.checkpoints.locate import default_model
from workbench.compat.mask_visualizer import AttentionMaskVisualizer
from workbench.model import LlamaForSequenceClassification, LlamaModel
from workbench.session import Session
from workbench.views.mask import visible
from workbench.widgets import MaskMatrix

VOCAB = 280
WEIGHTS = ["model.safetensors", "model-00001-of-00002.safetensors", "pytorch_model.bin"]
NEEDED = ["config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model"]


def tokenizer(bos=True, **changes):
    """A byte-level vocabulary: <|im_start|> begins a text, <|im_end|> is padding."""
    return tokenizer_from_gguf(byte_level_metadata(**{"tokenizer.ggml.add_bos_token": bos, **changes}))


def live(kind="gqa", **changes):
    return tiny_model(kind, vocab_size=VOCAB, **changes)


@pytest.fixture
def folder(tmp_path):
    """Config and tokenizer only: the mask needs no weights."""
    place = tmp_path / "tiny-llama"
    place.mkdir()
    (place / "config.json").write_text(json.dumps(tiny_config(vocab_size=VOCAB).to_dict()))
    made = tokenizer()
    made.backend_tokenizer.save(str(place / "tokenizer.json"))
    names = {"bos_token": made.bos_token, "eos_token": made.eos_token, "pad_token": made.pad_token}
    (place / "tokenizer_config.json").write_text(json.dumps({**names, "tokenizer_class": "PreTrainedTokenizerFast"}))
    return place


@pytest.fixture
def notebook(monkeypatch):
    """As inside a Jupyter kernel."""
    shell = types.SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))


class Stream(io.StringIO):
    def __init__(self, terminal=False, encoding="utf-8"):
        super().__init__()
        self.terminal, self._encoding = terminal, encoding

    @property
    def encoding(self):
        return self._encoding

    def isatty(self):
        return self.terminal


WITH_BOS = """\
Attention mask of tiny-llama: 3 queries × 3 keys
■ may attend   ⬚ masked: causal 3

           key 0 1 2
0 <|im_start|> ■ ⬚ ⬚
1 hello        ■ ■ ⬚
2 ␣world       ■ ■ ■
"""


def test_the_documented_call_prints_the_matrix_with_the_first_token_in_its_place(folder, capsys):
    from workbench.utils.attention_visualizer import AttentionMaskVisualizer as Documented

    visualizer = Documented(str(folder))
    assert visualizer("hello world") is None
    assert capsys.readouterr().out == WITH_BOS
    assert visualizer.visualize_attention_mask("hello world") is None
    assert capsys.readouterr().out == WITH_BOS
    visualizer("Plants create energy through a process known as")
    lines = capsys.readouterr().out.splitlines()
    assert lines[5].startswith(" 0 <|im_start|> ■ ⬚")
    assert lines[6].split()[:4] == ["1", "P", "■", "■"]


def test_without_a_first_token_there_is_none(capsys):
    AttentionMaskVisualizer(live(), tokenizer(bos=False))("hello world")
    assert capsys.readouterr().out.splitlines()[3:5] == ["     key 0 1", "0 hello  ■ ⬚"]


def test_texts_of_a_batch_are_padded_on_the_left_and_printed_one_after_the_other(folder, capsys):
    AttentionMaskVisualizer(folder)(["hello", "hello world"])
    assert capsys.readouterr().out == (
        """\
Attention mask of tiny-llama, text 0 of 2: 3 queries × 3 keys
■ may attend   ⬚ masked: causal 3, padding 3

           key 0 1 2
0 <|im_end|>   ⬚ ⬚ ⬚
1 <|im_start|> ⬚ ■ ⬚
2 hello        ⬚ ■ ■

Query 0 may attend to nothing: its weights are zero.

Attention mask of tiny-llama, text 1 of 2: 3 queries × 3 keys
■ may attend   ⬚ masked: causal 3

           key 0 1 2
0 <|im_start|> ■ ⬚ ⬚
1 hello        ■ ■ ⬚
2 ␣world       ■ ■ ■
"""
    )


def test_the_caller_s_own_mask(folder, capsys):
    visualizer = AttentionMaskVisualizer(folder)
    own = [[[[True, True, False], [False, True, False], [True, False, True]]]]
    visualizer("hello world", attention_mask=own)
    assert capsys.readouterr().out.splitlines()[1:7] == [
        "■ may attend   ⬚ masked: custom 4",
        "",
        "           key 0 1 2",
        "0 <|im_start|> ■ ■ ⬚",
        "1 hello        ⬚ ■ ⬚",
        "2 ␣world       ■ ⬚ ■",
    ]
    visualizer("hello world", attention_mask=[[1, 0, 1]])
    assert capsys.readouterr().out.splitlines()[5] == "1 hello        ■ ⬚ ⬚"


def test_one_head_of_a_mask_with_several(folder, capsys):
    visualizer = AttentionMaskVisualizer(folder)
    own = torch.zeros(1, 4, 3, 3)
    own[0, 3, 2, 0] = -torch.inf
    visualizer("hello world", attention_mask=own)
    assert "The heads have different masks" in capsys.readouterr().out
    visualizer("hello world", attention_mask=own, head=3)
    assert capsys.readouterr().out.splitlines()[6] == "2 ␣world       ⬚ ■ ■"


def test_a_long_text_is_cut_and_says_so(folder, capsys):
    visualizer = AttentionMaskVisualizer(folder)
    visualizer("hello" * 2000)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) < 150
    assert len(out.splitlines()) < 75
    assert "Shown: the first 64 of 2,001 queries and the first 64 of 2,001 keys." in out
    assert out.endswith("keys.\n\nmax_tokens= prints more.\n")
    visualizer("hello" * 20, max_tokens=21)
    assert "Shown" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("terminal", "no_color", "colored"), [(True, "", True), (True, "1", False), (False, "", False)]
)
def test_colour_on_a_terminal_only(folder, monkeypatch, terminal, no_color, colored):
    stream = Stream(terminal)
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setattr(sys, "stdout", stream)
    AttentionMaskVisualizer(folder)("hello")
    assert ("\x1b[92m■\x1b[0m" in stream.getvalue()) is colored
    assert stream.getvalue().count("■") == 4 + colored  # a colour needs a word in the legend


def test_a_stream_that_has_no_squares_gets_other_signs(folder, monkeypatch):
    stream = Stream(encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    AttentionMaskVisualizer(folder)("hello world")
    lines = stream.getvalue().splitlines()
    assert lines[1] == "# may attend   . masked: causal 3"
    assert lines[6] == "2 \\u2423world       # # #"


def test_a_live_model_a_loaded_one_and_a_session_show_the_same(folder, capsys):
    model, own = live(), tokenizer()
    loaded = Loaded(model, own, "tiny-llama", "nowhere")
    shown = []
    for source in (folder, loaded, Session(loaded), Session(model, own, name="tiny-llama")):
        AttentionMaskVisualizer(source)(["hello", "hello world"])
        shown.append(capsys.readouterr().out)
    AttentionMaskVisualizer(model, own)(["hello", "hello world"])
    shown.append(capsys.readouterr().out.replace("LlamaForCausalLM", "tiny-llama"))
    assert set(shown) == {shown[0]}


def test_the_default_model_and_a_gguf_file_are_read_without_weights(monkeypatch, capsys):
    monkeypatch.setattr(GGUFFile, "blocks", lambda *args: pytest.fail("weights were read"))
    for source in (None, default_model(), str(default_model())):
        visualizer = AttentionMaskVisualizer(source)
        assert (visualizer.model, visualizer.config.num_attention_heads) == (None, 9)
        visualizer("Plants create")
        assert capsys.readouterr().out.splitlines()[4:] == ["0 Plants  ■ ⬚", "1 ␣create ■ ■"]


# --- the mask is the one that the model applies ----------------------------------------------------------------------

MASKS = {
    "none": None,
    "left": [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]],
    "right": [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]],
    "holes": [[1, 0, 1, 0, 1], [0, 1, 1, 0, 1]],
    "own": torch.tensor(
        [[[[1, 0, 0, 0, 1], [1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [1, 0, 1, 1, 0], [0, 0, 0, 0, 1]]]]
    ).bool(),
}
TEXTS = ["abcd", "1 x?"]  # five tokens each


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("kind", ["mha", "gqa", "mqa"])
@torch.no_grad()
def test_squares_stand_exactly_where_the_model_s_pattern_is_not_zero(kind, name, capsys):
    model, own = live(kind, attn_implementation="eager"), tokenizer()
    given = MASKS[name] if name in ("none", "own") else torch.tensor(MASKS[name])
    ids = own(TEXTS, return_tensors="pt").input_ids
    assert ids.shape == (2, 5)
    patterns = model(ids, attention_mask=given, output_attentions=True).attentions
    AttentionMaskVisualizer(model, own)(TEXTS, attention_mask=given)
    shown = [line.split()[-5:] for line in capsys.readouterr().out.splitlines() if line[:1].isdigit()]
    printed = torch.tensor([[sign == "■" for sign in signs] for signs in shown]).view(2, 5, 5)
    for layer, pattern in enumerate(patterns):
        assert torch.equal(pattern > 0, printed[:, None].expand(pattern.shape)), f"layer {layer}"


@pytest.mark.parametrize("name", MASKS)
def test_the_config_alone_gives_the_forward_s_own_mask(name, folder):
    given = MASKS[name]
    mine = AttentionMaskVisualizer(folder).mask(TEXTS, attention_mask=given)
    theirs = AttentionMaskVisualizer(live(), tokenizer()).mask(TEXTS, attention_mask=given)
    assert [rule.name for rule in mine.rules] == [rule.name for rule in theirs.rules]
    assert torch.equal(mine.reasons(), theirs.reasons())
    assert torch.equal(mine.q_pos, theirs.q_pos)
    assert torch.equal(mine.k_pos, theirs.k_pos)


def test_looking_changes_nothing():
    model = live(attention_dropout=0.5).train()
    layers = []
    model.model.layers[1].register_forward_hook(lambda *args: layers.append(1))
    before, state = hooks(model), torch.get_rng_state()
    AttentionMaskVisualizer(model, tokenizer()).mask("hello world")
    with pytest.raises(ValueError, match="attention_mask has shape"):
        AttentionMaskVisualizer(model, tokenizer()).mask("hello world", attention_mask=[[1, 1]])
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert (hooks(model), layers) == (before, [])


def test_of_a_model_on_the_hub_config_and_tokenizer_are_fetched_and_no_weights(folder, monkeypatch, capsys):
    asked = {}

    def fetch(name, **options):
        asked.update(options, name=name)
        return folder

    monkeypatch.setattr(hub, "fetch", fetch)
    AttentionMaskVisualizer("meta-llama/tiny", revision="v1", token="secret")("hello")
    assert capsys.readouterr().out.startswith("Attention mask of tiny: 2 queries × 2 keys\n")
    assert (asked["name"], asked["revision"], asked["token"]) == ("meta-llama/tiny", "v1", "secret")
    wanted = [name for name in WEIGHTS + NEEDED if any(fnmatch.fnmatch(name, rule) for rule in asked["files"])]
    assert wanted == NEEDED


@pytest.mark.parametrize("make", [LlamaModel, LlamaForSequenceClassification])
def test_models_with_another_head_or_none(make, capsys):
    AttentionMaskVisualizer(make(tiny_config(vocab_size=VOCAB)).eval(), tokenizer())("hello")
    assert capsys.readouterr().out.startswith(f"Attention mask of {make.__name__}: 2 queries × 2 keys\n")


# --- labels ----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=12))
def test_the_label_of_row_i_is_the_token_whose_query_is_row_i(text):
    own = tokenizer()
    stream, real = Stream(), sys.stdout
    sys.stdout = stream
    try:
        AttentionMaskVisualizer(live(), own)(text)
    finally:
        sys.stdout = real
    lines = stream.getvalue().split("\n")
    first = next(i for i, line in enumerate(lines) if line.lstrip().startswith("key ")) + 1
    ids = own.encode(text)
    assert ids[0] == own.bos_token_id
    for i, token in enumerate(ids):
        assert lines[first + i].split()[:2] == [str(i), visible(own.pieces([token])[0])]


def test_the_view_s_labels_are_the_tokens_too():
    own = tokenizer()
    view = AttentionMaskVisualizer(live(), own).view(["hello", "hello world"])
    content, _ = view._payload[0]["content"], view._payload[1]
    assert content["texts"][0]["queries"] == content["texts"][0]["keys"] == ["<|im_end|>", "<|im_start|>", "hello"]
    assert content["texts"][1]["queries"] == ["<|im_start|>", "hello", " world"]
    assert [text["name"] for text in content["texts"]] == ["0: hello", "1: hello world"]


# --- in a notebook ---------------------------------------------------------------------------------------------------


def test_a_notebook_also_gets_the_view(folder, notebook, capsys):
    view = AttentionMaskVisualizer(folder)("hello world")
    assert isinstance(view, MaskMatrix)
    assert capsys.readouterr().out == WITH_BOS
    assert f"{view!r}\n" == WITH_BOS
    assert view._repr_mimebundle_()[0]["text/plain"] == repr(view)


def test_ipython_in_a_terminal_is_no_notebook(folder, monkeypatch):
    ipython = types.SimpleNamespace(get_ipython=lambda: types.SimpleNamespace())
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    assert AttentionMaskVisualizer(folder)("hello") is None


def test_a_view_of_a_long_text_is_cut_to_what_a_page_can_take(folder):
    view = AttentionMaskVisualizer(folder).view("hello" * 2500)
    message, buffers = view._payload
    assert message["arrays"][0]["shape"] == [1, 2000, 2000]
    assert sum(map(len, buffers)) <= 4_000_000
    assert message["content"]["notes"] == ["Shown: the first 2,000 of 2,501 queries and the first 2,000 of 2,501 keys."]


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (dict(suffix="!"), ValueError, "suffix is '!', but a Llama reads text only"),
        (dict(max_tokens=0), ValueError, "max_tokens is 0; it must be 1 or more"),
        (dict(max_tokens=2.5), TypeError, "max_tokens is 2.5; it must be a whole number"),
        (dict(max_tokens=True), TypeError, "max_tokens is True"),
        (dict(head=4), ValueError, "head is 4; this model has query heads 0 … 3"),
        (dict(head="0"), ValueError, "head is '0'; this model has query heads"),
        (dict(attention_mask="abc"), TypeError, "attention_mask is a str that is no array of numbers"),
        (dict(attention_mask=[[1, 1]]), ValueError, r"attention_mask has shape \(1, 2\); expected .* \(1, 3\)"),
        (dict(attention_mask=[[1, 2, 1]]), ValueError, "holds other values than 0"),
    ],
)
def test_wrong_options_are_named(folder, capsys, options, error, words):
    with pytest.raises(error, match=words):
        AttentionMaskVisualizer(folder)("hello world", **options)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("text", [3, None, [], ["a", 3], b"a"])
def test_a_text_of_another_type_is_named(folder, text):
    with pytest.raises(TypeError, match="input_sentence is .*; a text or a list of texts is needed"):
        AttentionMaskVisualizer(folder)(text)


def test_a_text_without_tokens_is_refused():
    with pytest.raises(ValueError, match="input_sentence has no tokens"):
        AttentionMaskVisualizer(live(), tokenizer(bos=False))("")


def test_sources_that_are_none_are_named(tmp_path):
    with pytest.raises(TypeError, match="a live model needs its tokenizer too"):
        AttentionMaskVisualizer(live())
    with pytest.raises(TypeError, match="model_name is a Linear; give a folder, a .gguf file, a Hub id"):
        AttentionMaskVisualizer(torch.nn.Linear(1, 1), tokenizer())
    with pytest.raises(TypeError, match="model_name is a int"):
        AttentionMaskVisualizer(3)
    with pytest.raises(TypeError, match="tokenizer is a str; a workbench LlamaTokenizer is needed"):
        AttentionMaskVisualizer(live(), "tiny")
    with pytest.raises(FileNotFoundError, match="There is nothing at"):
        AttentionMaskVisualizer(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        AttentionMaskVisualizer(tmp_path)


def test_a_script_that_prints_loads_no_widgets_and_no_pandas():
    code = "import sys; from workbench.utils.attention_visualizer import AttentionMaskVisualizer; "
    code += "AttentionMaskVisualizer()('a'); print(sorted({'ipywidgets', 'anywidget', 'pandas'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-2:] == ["0 a ■", "[]"]
