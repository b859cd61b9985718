"""Finding the decoder blocks of a model."""

from typing import Any

import pytest
import torch
import transformers as tf
from torch import nn

from lowrank_bench.models.architectures import ARCHITECTURES, random_model
from lowrank_bench.models.blocks import find_blocks
from lowrank_bench.models.streamed import NotStreamable

SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}


def skeleton(config: Any) -> nn.Module:
    """Build a model on the meta device."""
    with torch.device("meta"):
        return tf.AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_finds_the_layers(architecture: str) -> None:
    """All of them, in order; the model on the meta device is left as it was."""
    model = skeleton(random_model(architecture).config)
    blocks = find_blocks(model)
    assert [name.rpartition(".")[2] for name in blocks.names] == ["0", "1"]
    inside = [name for name, _ in model.named_modules() if blocks.owner(name)]
    assert sum(name.endswith(("q_proj", "query_key_value", "qkv_proj")) for name in inside) == 2
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_finds_layers_that_return_tuples() -> None:
    """Falcon's blocks return the hidden states in a tuple."""
    blocks = find_blocks(skeleton(tf.FalconConfig(**SMALL)))
    assert len(blocks.names) == 3
    assert blocks.in_tuple


def test_refuses_what_is_built_otherwise() -> None:
    """A linear layer before the blocks, a skipped block, one called twice, and outputs that leave the chain."""
    with pytest.raises(NotStreamable):
        find_blocks(skeleton(tf.OPTConfig(**SMALL | {"ffn_dim": 64}, word_embed_proj_dim=16)))
    with pytest.raises(NotStreamable, match="no list of blocks"):
        find_blocks(nn.Sequential(nn.Linear(2, 2)))

    class Odd(tf.LlamaModel):
        how = ""

        def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
            x = first = self.embed_tokens(input_ids)
            positions = self.rotary_emb(x, torch.arange(x.shape[1])[None])
            for number, layer in enumerate(self.layers):
                if self.how == "skipped" and number == 1:
                    continue
                before = x
                x = layer(x, position_embeddings=positions, extra=first if self.how == "extra" else None)
                x = layer(x, position_embeddings=positions) if self.how == "twice" else x
                x = x + before if self.how == "between" else x
                first_output = x if number == 0 else first_output  # noqa: F821
            x = x + first_output if self.how == "end" else x
            return tf.modeling_outputs.BaseModelOutputWithPast(last_hidden_state=self.norm(x))

    for how in ("", "skipped", "extra", "twice", "between", "end"):
        model = skeleton(tf.LlamaConfig(**SMALL))
        model.model.__class__, model.model.how = Odd, how
        if how:
            with pytest.raises(NotStreamable, match="one after the other"):
                find_blocks(model)
        else:
            assert len(find_blocks(model).names) == 3
