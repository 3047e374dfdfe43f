"""What all Llama models share: where the weights are, their embeddings, switches, loading and saving."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from workbench.config import LlamaConfig
from workbench.model.attention import check_implementation
from workbench.model.quantized import QuantizedEmbedding, check_device, quantized_count

Self = TypeVar("Self", bound="LlamaPreTrainedModel")


class LlamaPreTrainedModel(nn.Module):
    """The base of `LlamaModel` and of every model with a head.

    Attributes:
        config: the sizes and options.
        base_model_prefix: name of the attribute that holds the `LlamaModel`, as in the parameter names.
        stored_generation_config: defaults of `generate` that came with the checkpoint or were set; `None` without any.
        gradient_checkpointing: whether training recomputes each layer's activations instead of keeping them.
    """

    config_class = LlamaConfig
    main_input_name = "input_ids"
    base_model_prefix = "model"

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        if not isinstance(config, LlamaConfig):
            raise TypeError(f"config is a {type(config).__name__}; a LlamaConfig is needed.")
        check_implementation(config.attn_implementation)
        self.config = config
        self.stored_generation_config: Any = None
        self.gradient_checkpointing: Any = False

    @classmethod
    def from_pretrained(cls: type[Self], source: str | Path, **options: Any) -> Self:
        """The model of a folder, a GGUF file or a Hub id; see `workbench.checkpoints.pretrained.from_pretrained`."""
        from workbench.checkpoints.pretrained import from_pretrained  # files are read above the model

        model: Self = from_pretrained(cls, source, **options)
        return model

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Writes config.json and safetensors; see `workbench.checkpoints.save.save_pretrained`."""
        from workbench.checkpoints.save import save_pretrained

        save_pretrained(self, folder, **options)

    @property
    def generation_config(self) -> Any:
        """The defaults of `generate`, to read and to change; made of the config's tokens if there are none yet."""
        if self.stored_generation_config is None:
            from workbench.generation import GenerationConfig  # generation builds on the model

            self.stored_generation_config = GenerationConfig.from_model_config(self.config)
        return self.stored_generation_config

    @generation_config.setter
    def generation_config(self, value: Any) -> None:
        self.stored_generation_config = value

    @property
    def device(self) -> torch.device:
        """Where the first weight is."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The data type of the first floating-point weight."""
        return next(p.dtype for p in self.parameters() if p.is_floating_point())

    @property
    def vocab_size(self) -> int:
        """Number of tokens the embedding knows."""
        return self.config.vocab_size

    def can_generate(self) -> bool:
        """Whether the model has `generate`."""
        return hasattr(self, "generate")

    def get_decoder(self) -> nn.Module:
        """The `LlamaModel` inside, or the model itself."""
        return self.base_model

    @property
    def base_model(self) -> nn.Module:
        """The `LlamaModel` inside, or the model itself."""
        found: nn.Module = getattr(self, self.base_model_prefix, self)
        return found

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Number of weights; a tied head counts once."""
        embedding = self.get_input_embeddings()
        left_out = {id(p) for p in embedding.parameters()} if exclude_embeddings else set()
        counted = (p for p in self.parameters() if id(p) not in left_out)
        number = sum(p.numel() for p in counted if p.requires_grad or not only_trainable)
        if only_trainable:
            return number
        return number + quantized_count(self) - (quantized_count(embedding) if exclude_embeddings else 0)

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of the weights, and of the buffers, such as quantized weights; shared memory counts once."""
        held = [*self.parameters(), *(self.buffers() if return_buffers else ())]
        return sum({tensor.data_ptr(): tensor.nbytes for tensor in held}.values())

    def _apply(self: Self, fn: Any, recurse: bool = True) -> Self:  # .to(), .half(), .cuda()
        check_device(self, fn)  # before the first module is moved
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    # Embeddings -----------------------------------------------------------------------------------------------------

    def get_input_embeddings(self) -> nn.Module:
        """The module from token ids to vectors."""
        found: nn.Module = self.base_model.embed_tokens  # type: ignore[assignment]
        return found

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the module from token ids to vectors."""
        self.base_model.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module | None:
        """The module from vectors to logits of tokens, `None` for a model that has none."""
        return None

    def tie_weights(self) -> None:
        """Makes the output share the embedding's weight, if the config says so and there is an output."""
        head, embedding = self.get_output_embeddings(), self.get_input_embeddings()
        if head is None or not self.config.tie_word_embeddings:
            return
        if isinstance(embedding, QuantizedEmbedding):
            self.set_output_embeddings(embedding.as_output())  # type: ignore[operator]
        else:
            head.weight = embedding.weight

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Module:
        """Makes room for another number of tokens in the embedding and the output; tied stays tied.

        Args:
            new_num_tokens: tokens there shall be; the first ones keep their vectors. `None` keeps the number.
            pad_to_multiple_of: round up to a multiple of this, which suits the hardware.
            mean_resizing: new tokens get the mean of the old vectors, so that they start out unremarkable
                (https://nlp.stanford.edu/~johnhew/vocab-expansion.html); otherwise random ones.

        Returns:
            The embedding.

        Raises:
            ValueError: for a number below 1.
        """
        rows = self.config.vocab_size if new_num_tokens is None else new_num_tokens
        for name, value in (("new_num_tokens", rows), ("pad_to_multiple_of", pad_to_multiple_of or 1)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} is {value!r}; it must be a whole number of at least 1, or None.")
        if pad_to_multiple_of:
            rows = -(-rows // pad_to_multiple_of) * pad_to_multiple_of
        embedding: Any = self.get_input_embeddings()
        head: Any = self.get_output_embeddings()
        if quantized_count(embedding) or (head is not None and quantized_count(head)):
            raise ValueError(
                "the embedding or the output is quantized and cannot be resized. Resize the model before quantizing it."
            )
        if rows == self.config.vocab_size:
            return self.get_input_embeddings()
        std = None if mean_resizing else self.config.initializer_range
        embedding.weight = _resized(embedding.weight, rows, std)
        embedding.num_embeddings = rows
        if head is not None:
            head.weight = embedding.weight if self.config.tie_word_embeddings else _resized(head.weight, rows, std)
            head.out_features = rows
        self.config.vocab_size = rows
        return self.get_input_embeddings()

    # Switches -------------------------------------------------------------------------------------------------------

    def set_attn_implementation(self, name: str) -> None:
        """Switches between `"sdpa"`, `"eager"` and `"flex_attention"`.

        Raises:
            ValueError: for another name.
        """
        check_implementation(name)
        self.config.attn_implementation = name

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """In training, keeps each layer's input only and computes the layer again for its gradients.

        Args:
            gradient_checkpointing_kwargs: of `torch.utils.checkpoint.checkpoint`; `use_reentrant` is False by default.
        """
        options = {"use_reentrant": False, **(gradient_checkpointing_kwargs or {})}
        setattr(self.base_model, "gradient_checkpointing", options)  # noqa: B010 - mypy takes modules' attributes for modules

    def gradient_checkpointing_disable(self) -> None:
        """Keeps activations again."""
        setattr(self.base_model, "gradient_checkpointing", False)  # noqa: B010

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether `gradient_checkpointing_enable` is in force."""
        return bool(self.base_model.gradient_checkpointing)


def initialise(module: nn.Module, std: float) -> None:
    """Normal weights, zero biases, as a fresh `transformers` model."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=std)
            if isinstance(part, nn.Linear) and part.bias is not None:
                nn.init.zeros_(part.bias)
            if isinstance(part, nn.Embedding) and part.padding_idx is not None:
                with torch.no_grad():
                    part.weight[part.padding_idx].zero_()


def _resized(weight: Tensor, rows: int, std: float | None) -> nn.Parameter:
    """The first `rows` rows; further ones are the mean of the old, or random with `std`."""
    kept = min(rows, len(weight))
    with torch.no_grad():
        new = weight.new_empty((rows, weight.shape[1]))
        new[:kept] = weight[:kept]
        if rows > kept:
            new[kept:] = weight.float().mean(0).to(weight.dtype) if std is None else torch.randn_like(new[kept:]) * std
    return nn.Parameter(new, requires_grad=weight.requires_grad)
