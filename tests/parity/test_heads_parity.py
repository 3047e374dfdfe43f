"""Each head's logits and losses equal transformers', by attention kind and by kind of label."""

import pytest
import torch
import transformers

from tests.conftest import tiny_config
from tests.parity.test_model_parity import close
from workbench import model as ours_of

HEADS = {
    "sequence": "LlamaForSequenceClassification",
    "token": "LlamaForTokenClassification",
    "question": "LlamaForQuestionAnswering",
}
PAD = 0


def pair(head, kind="gqa", **changes):
    """Our model with a head and transformers', with the same weights."""
    config = tiny_config(kind, attn_implementation="eager", **changes)
    values = {k: v for k, v in config.to_dict().items() if k not in ("architectures", "model_type")}
    theirs = getattr(transformers, HEADS[head])(transformers.LlamaConfig(**values)).eval()
    theirs.set_attn_implementation("eager")
    ours = getattr(ours_of, HEADS[head])(config).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


@pytest.fixture
def ids():
    return torch.randint(1, 97, (3, 11))


LABELS = {
    "single label": (4, None, lambda: torch.tensor([0, 3, 2])),
    "single label, one left out": (4, "single_label_classification", lambda: torch.tensor([0, -100, 2])),
    "several labels": (4, None, lambda: torch.randint(0, 2, (3, 4)).float()),
    "regression to one number": (1, None, lambda: torch.randn(3)),
    "regression to several": (4, "regression", lambda: torch.randn(3, 4)),
}


@pytest.mark.parametrize(("num_labels", "problem", "labels"), LABELS.values(), ids=LABELS.keys())
@pytest.mark.parametrize("kind", ["mha", "gqa", "mqa"])
def test_sequence_classification(kind, num_labels, problem, labels, ids):
    ours, theirs = pair("sequence", kind, num_labels=num_labels, problem_type=problem)
    targets = labels()
    mine, reference = ours(ids, labels=targets), theirs(ids, labels=targets)
    close(mine.logits, reference.logits, "logits")
    close(mine.loss, reference.loss, "loss")
    mine.loss.backward()
    reference.loss.backward()
    close(ours.score.weight.grad, theirs.score.weight.grad, "gradient of the head")
    assert ours.config.problem_type == problem


@pytest.mark.parametrize("side", ["left", "right", "both"])
@torch.no_grad()
def test_a_sequence_is_judged_at_its_last_token_that_is_no_padding(side, ids):
    ours, theirs = pair("sequence", num_labels=3)
    mask = torch.ones_like(ids)
    if side != "right":
        mask[0, :4] = 0
    if side != "left":
        mask[1, -3:] = 0
    ids = ids.masked_fill(mask == 0, PAD)
    mine = ours(ids, attention_mask=mask).logits
    close(mine, theirs(ids, attention_mask=mask).logits, side)
    last = int(mask[1].nonzero().max())
    alone = ours(ids[1:2, : last + 1], attention_mask=mask[1:2, : last + 1]).logits
    close(mine[1:2], alone, "the row by itself")


@torch.no_grad()
def test_embeddings_are_judged_at_their_last_position(ids):
    ours, theirs = pair("sequence")
    embedded = theirs.model.embed_tokens(ids)
    close(ours(inputs_embeds=embedded).logits, theirs(inputs_embeds=embedded).logits, "logits")


@torch.no_grad()
def test_one_row_needs_no_padding_token(ids):
    ours, theirs = pair("sequence", pad_token_id=None)
    close(ours(ids[:1]).logits, theirs(ids[:1]).logits, "logits")
    with pytest.raises(ValueError, match=r"3 rows were given, but config.pad_token_id is None.*Set model.config.pad"):
        ours(ids)


@pytest.mark.parametrize("kind", ["mha", "gqa", "mqa"])
def test_token_classification(kind, ids):
    ours, theirs = pair("token", kind, num_labels=5)
    labels = torch.randint(0, 5, ids.shape)
    labels[0, :3] = -100
    mine, reference = ours(ids, labels=labels), theirs(ids, labels=labels)
    close(mine.logits, reference.logits, "logits")
    close(mine.loss, reference.loss, "loss")
    mine.loss.backward()
    reference.loss.backward()
    close(ours.score.bias.grad, theirs.score.bias.grad, "gradient of the bias")
    close(ours.model.embed_tokens.weight.grad, theirs.model.embed_tokens.weight.grad, "gradient of the embedding")


POSITIONS = {
    "inside": ([1, 4, 0], [3, 10, 0]),
    "as columns": ([[1], [4], [0]], [[3], [10], [0]]),
    "past the text": ([1, 50, 11], [3, 60, 2]),
    "negative": ([-1, 4, 0], [3, -7, 0]),
}


@pytest.mark.parametrize(("start", "end"), POSITIONS.values(), ids=POSITIONS.keys())
@pytest.mark.parametrize("kind", ["mha", "gqa", "mqa"])
def test_question_answering(kind, start, end, ids):
    ours, theirs = pair("question", kind)
    spans = dict(start_positions=torch.tensor(start), end_positions=torch.tensor(end))
    mine, reference = ours(ids, **spans), theirs(ids, **spans)
    close(mine.start_logits, reference.start_logits, "start")
    close(mine.end_logits, reference.end_logits, "end")
    close(mine.loss, reference.loss, "loss")


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", ["mha", "gqa", "mqa"])
@torch.no_grad()
def test_hidden_states_attentions_and_tuples(head, kind, ids):
    ours, theirs = pair(head, kind)
    wanted = dict(output_hidden_states=True, output_attentions=True)
    mine, reference = ours(ids, **wanted), theirs(ids, **wanted)
    assert set(mine) - {"past_key_values"} == set(reference) - {"past_key_values"}
    for name in ("hidden_states", "attentions"):
        for i, (a, b) in enumerate(zip(mine[name], reference[name], strict=True)):
            close(a, b, f"{name}[{i}]")
    plain = ours(ids, return_dict=False)
    assert type(plain) is tuple
    close(plain[0], reference[0], "first of the tuple")


WRONG = {
    "class too large": ("sequence", dict(labels=torch.tensor([0, 2, 1])), r"labels holds 2; classes lie in 0 … 1"),
    "a label too few": ("sequence", dict(labels=torch.tensor([0, 1])), r"labels has shape \(2,\); single_.*\(3,\)"),
    "float classes": ("token", dict(labels=torch.zeros(3, 11)), r"labels holds torch.float32; token classification"),
    "labels of rows": ("token", dict(labels=torch.tensor([0, 1, 1])), r"labels has shape \(3,\); token.*\(3, 11\)"),
    "start without end": ("question", dict(start_positions=torch.tensor([0, 1, 2])), "end_positions is missing"),
    "float positions": (
        "question",
        dict(start_positions=torch.rand(3), end_positions=torch.tensor([0, 1, 2])),
        r"start_positions or end_positions has shape \(3,\) and torch.float32",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("head", "arguments", "message"), WRONG.values(), ids=WRONG.keys())
def test_labels_that_do_not_fit_are_refused(head, arguments, message, ids):
    ours, _ = pair(head)
    with pytest.raises(ValueError, match=message):
        ours(ids, **arguments)


def test_the_comparison_notices_a_pooling_that_is_off_by_one(ids):
    ours, theirs = pair("sequence")
    ours._last = lambda input_ids, logits: -2
    with pytest.raises(AssertionError, match="relative"):
        close(ours(ids).logits, theirs(ids).logits, "pooled one too early")
