"""Chat: lists of messages to prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workbench.tokenizer.batch_encoding import BatchEncoding
from workbench.tokenizer.chat_template import render_chat
from workbench.tokenizer.encode import Encoder
from workbench.tokenizer.errors import TokenizerError, flag
from workbench.tokenizer.tool_schema import ChatTemplateError


class Chat(Encoder):
    """The part of a tokenizer that writes prompts for chats."""

    chat_template: str | dict[str, str] | None

    def apply_chat_template(
        self,
        conversation: Any,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        tokenize: bool = True,
        *,
        padding: bool | str = False,
        truncation: bool | str | None = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        return_dict: bool = True,
        return_assistant_tokens_mask: bool = False,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        **variables: Any,
    ) -> Any:
        """The prompt for a list of messages, as the model's own chat template writes it.

        Args:
            conversation: messages, each `{"role": ..., "content": ...}`; or a list of such lists.
            tools: what the model may call: functions with type hints and a docstring, or JSON schemas.
            documents: what it may read, each `{"title": ..., "text": ...}`.
            chat_template: Jinja text instead of the model's own, or the name of one of its own.
            add_generation_prompt: whether to end with the words that make the model answer.
            continue_final_message: end inside the last message, for the model to go on with it; a text names its field.
            tokenize: give token ids; otherwise the text.
            padding, truncation, max_length, return_tensors: as for a call.
            return_dict: with `tokenize`, give `input_ids` and `attention_mask` (as `transformers` 5 does), or the ids.
            return_assistant_tokens_mask: also give `assistant_masks`, 1 for what stands in the template's
                `{% generation %}` blocks.
            tokenizer_kwargs: further arguments for the call.
            **variables: further names the template may use.

        Raises:
            TokenizerError: if there is no template, or with what it complained of.
        """
        for name, value in (
            ("add_generation_prompt", add_generation_prompt),
            ("tokenize", tokenize),
            ("return_dict", return_dict),
            ("return_assistant_tokens_mask", return_assistant_tokens_mask),
        ):
            flag(name, value)
        if variables.pop("sanitize_control_tokens", False):
            raise TokenizerError("sanitize_control_tokens is not supported: check the messages for special tokens.")
        if return_assistant_tokens_mask and not (tokenize and return_dict):
            raise TokenizerError("return_assistant_tokens_mask=True needs tokenize=True and return_dict=True.")
        if continue_final_message and (add_generation_prompt or return_assistant_tokens_mask):
            other = "add_generation_prompt" if add_generation_prompt else "return_assistant_tokens_mask"
            raise TokenizerError(f"continue_final_message and {other} cannot both be asked for.")
        template = self.get_chat_template(chat_template, tools)
        batched = _is_batch(conversation)
        names = {**self.special_tokens_map, "add_generation_prompt": add_generation_prompt, **variables}
        names.update(tools=tools, documents=documents)
        try:
            chats = [
                render_chat(template, chat, continue_final_message, return_assistant_tokens_mask, **names)
                for chat in (conversation if batched else [conversation])
            ]
        except ChatTemplateError as error:
            raise TokenizerError(str(error)) from error
        texts = [chat.text for chat in chats]
        if not tokenize:
            return texts if batched else texts[0]
        # The template writes its special tokens itself.
        shape = {"padding": padding, "truncation": truncation, "max_length": max_length}
        options = {**shape, "return_tensors": return_tensors, "add_special_tokens": False, **(tokenizer_kwargs or {})}
        encoding = self(texts if batched else texts[0], **options)
        if return_assistant_tokens_mask:
            masks = [_mask(encoding, row, chat.spans) for row, chat in enumerate(chats)]
            encoding["assistant_masks"] = masks if batched or return_tensors else masks[0]
            encoding.convert_to_tensors(return_tensors)
        return encoding if return_dict else encoding["input_ids"]

    def get_chat_template(self, chat_template: str | None = None, tools: Any = None) -> str:
        """The Jinja text that `apply_chat_template` uses.

        Args:
            chat_template: Jinja text instead of the model's own, or the name of one of its own.
            tools: with any, the template named `tool_use` is taken, if there is one.

        Raises:
            TokenizerError: if there is none.
        """
        own = self.chat_template
        if chat_template is not None and not isinstance(chat_template, str):
            raise TokenizerError(
                f"chat_template is {chat_template!r:.80}; a Jinja text or a template's name is needed."
            )
        if isinstance(own, dict):
            name = "tool_use" if tools is not None and "tool_use" in own else "default"
            if chat_template is None and name not in own:
                raise TokenizerError(
                    f"This tokenizer has the chat templates {', '.join(sorted(own))} and no default. Give the name of "
                    "one as chat_template."
                )
            return own[name] if chat_template is None else own.get(chat_template, chat_template)
        if chat_template is None and own is None:
            raise TokenizerError(
                "This tokenizer has no chat template. Give one: apply_chat_template(messages, chat_template=...)."
            )
        return own if chat_template is None else chat_template  # type: ignore[return-value]  # one of them is there


def _is_batch(conversation: Any) -> bool:
    return isinstance(conversation, list | tuple) and bool(conversation) and isinstance(conversation[0], list | tuple)


def _mask(encoding: BatchEncoding, row: int, spans: list[tuple[int, int]]) -> list[int]:
    """1 for the tokens of the characters in `spans`."""
    assert encoding.encodings is not None
    mask = [0] * len(encoding.encodings[row])
    for start, end in spans:
        first, last = encoding.char_to_token(row, start), encoding.char_to_token(row, end - 1)
        if first is None:  # cut off
            break
        for index in range(first, len(mask) if last is None else last + 1):
            mask[index] = 1
    return mask
