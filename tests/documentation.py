"""The code of the Llama documentation page of transformers, and how it is run here."""

import contextlib
import io

PIPELINE = """
import torch
from transformers import pipeline

pipeline = pipeline(
    task="text-generation",
    model="huggyllama/llama-7b",
    dtype=torch.float16,
    device=0
)
pipeline("Plants create energy through a process known as")
"""
AUTO = """
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(
    "huggyllama/llama-7b",
)
model = AutoModelForCausalLM.from_pretrained(
    "huggyllama/llama-7b",
    dtype=torch.float16,
    device_map="auto",
    attn_implementation="sdpa"
)
input_ids = tokenizer("Plants create energy through a process known as", return_tensors="pt").to(model.device)

output = model.generate(**input_ids, cache_implementation="static")
print(tokenizer.decode(output[0], skip_special_tokens=True))
"""
COMMAND_LINE = (
    'echo -e "Plants create energy through a process known as" | '
    "transformers run --task text-generation --model huggyllama/llama-7b --device 0"
)
INT4 = """
import torch
from transformers import TorchAoConfig, AutoModelForCausalLM, AutoTokenizer

quantization_config = TorchAoConfig("int4_weight_only", group_size=128)
model = AutoModelForCausalLM.from_pretrained(
    "huggyllama/llama-30b",
    dtype=torch.bfloat16,
    device_map="auto",
    quantization_config=quantization_config
)

tokenizer = AutoTokenizer.from_pretrained("huggyllama/llama-30b")
input_ids = tokenizer("Plants create energy through a process known as", return_tensors="pt").to("cuda")

output = model.generate(**input_ids, cache_implementation="static")
print(tokenizer.decode(output[0], skip_special_tokens=True))
"""
VISUALIZER = """
from transformers.utils.attention_visualizer import AttentionMaskVisualizer

visualizer = AttentionMaskVisualizer("huggyllama/llama-7b")
visualizer("Plants create energy through a process known as")
"""
CONFIG = """
from transformers import LlamaModel, LlamaConfig

# Initializing a LLaMA llama-7b style configuration
configuration = LlamaConfig()

# Initializing a model from the llama-7b style configuration
model = LlamaModel(configuration)

# Accessing the model configuration
configuration = model.config
"""
TOKENIZER = """
from transformers import LlamaTokenizerFast

tokenizer = LlamaTokenizerFast.from_pretrained("hf-internal-testing/llama-tokenizer")
tokenizer.encode("Hello this is a test")
"""
CAUSAL_LM = """
from transformers import AutoTokenizer, LlamaForCausalLM

model = LlamaForCausalLM.from_pretrained("meta-llama/Llama-2-7b-hf")
tokenizer = AutoTokenizer.from_pretrained("meta-llama/Llama-2-7b-hf")

prompt = "Hey, are you conscious? Can you talk to me?"
inputs = tokenizer(prompt, return_tensors="pt")

# Generate
generate_ids = model.generate(inputs.input_ids, max_length=30)
tokenizer.batch_decode(generate_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)[0]
"""
MODELS = ("huggyllama/llama-7b", "huggyllama/llama-30b", "meta-llama/Llama-2-7b-hf",
          "hf-internal-testing/llama-tokenizer")  # fmt: skip


def adapted(text, folder, package="workbench"):
    """The example for `package`, with its model at `folder`, on the CPU."""
    for model in MODELS:
        text = text.replace(model, str(folder))
    text = text.replace('.to("cuda")', '.to("cpu")').replace("device=0", 'device="cpu"')
    return text.replace("transformers", package)


def run_example(text, folder, package="workbench"):
    """(value of the last line, what was printed, all names) of an example."""
    *body, last = adapted(text, folder, package).strip().splitlines()
    names, printed = {}, io.StringIO()
    with contextlib.redirect_stdout(printed):
        if last[0] in " )" or "=" in last.split("(")[0]:  # the end of a statement
            exec("\n".join([*body, last]), names)
            value = None
        else:
            exec("\n".join(body), names)
            value = eval(last, names)
    return value, printed.getvalue(), names
