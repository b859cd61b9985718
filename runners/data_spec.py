"""The task data that a stage reads, as part of its key."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer


class Frozen(BaseModel):
    """Base of what describes a stage."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class DataSpec(Frozen):
    """The task data that a stage reads.

    Attributes:
        task: whose data.
        source: name of the training set.
        sha256: of its content, hex.
        prompt_version: of the rules by which examples become prompts.
        max_length: longest example in tokens; None takes the task's own.
        chat: instructions are rendered with the tokenizer's chat template; part of the key only where they are.
        chat_rules: version of the rules by which they are, `chat_rules`; part of the key only where it is not 1.
        held_out: share of the examples that a training leaves out (`training.held_out`); part of the key only where it
            is not 0.
    """

    task: str
    source: str
    sha256: str
    prompt_version: int
    max_length: int | None = None
    chat: bool = False
    chat_rules: int = 1
    held_out: float = 0.0

    @model_serializer(mode="wrap")
    def _without_chat(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = plain(self)
        if not self.chat:
            del fields["chat"]
        if not self.chat or self.chat_rules == 1:
            del fields["chat_rules"]
        if not self.held_out:
            del fields["held_out"]
        return fields
