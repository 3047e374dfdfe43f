import pytest
import torch

from workbench.config import LlamaConfig
from workbench.model import LlamaForCausalLM

HEADS = {"mha": (4, 4), "gqa": (4, 2), "mqa": (4, 1)}


@pytest.fixture(autouse=True)
def _repeatable():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def tiny_config(kind: str = "gqa", **changes) -> LlamaConfig:
    heads, kv_heads = HEADS[kind]
    sizes = dict(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=128,
        initializer_range=0.3,  # large enough that a wrong mask or position changes the numbers visibly
        pad_token_id=0,
    )
    return LlamaConfig(**{**sizes, **changes})


def tiny_model(kind: str = "gqa", **changes) -> LlamaForCausalLM:
    return LlamaForCausalLM(tiny_config(kind, **changes)).eval()


def hooks(model):
    """How many hooks of any kind are registered anywhere in the model."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


@pytest.fixture
def model() -> LlamaForCausalLM:
    return tiny_model()
