import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
import transformers

from workbench.checkpoints.load import default_model, load


def their_gguf(path):
    """transformers' own loading of a GGUF file."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()


@pytest.fixture(scope="session")
def default_pair():
    """The default model, loaded here and by transformers."""
    return load(progress=False), their_gguf(default_model())
