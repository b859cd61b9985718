"""What models of today have that a plain Llama has not: capped attention scores, vision layers, fused experts."""

import pytest
import torch
import transformers as tf

from lowrank_bench.models.loading import load_model, load_skeleton
from lowrank_bench.models.matrices import matrices, model_size
from lowrank_bench.models.streamed import open_streamed
from lowrank_bench.models.untouched import untouched

SIZES = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
}  # fmt: skip
IDS = torch.arange(1, 41)[None]


def gemma2(cap):
    torch.manual_seed(0)
    model = tf.Gemma2ForCausalLM(tf.Gemma2Config(**SIZES, attn_logit_softcapping=cap, query_pre_attn_scalar=1))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "proj" in name:
                parameter.mul_(20)
    return model.eval()


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("cap", [0.5, 2.0, None])
def test_attention_scores_are_capped_where_the_model_says_so(cap, tmp_path):
    """torch's fused attention drops the cap; without one the two agree and the fused one is used."""
    model = gemma2(cap)
    model.save_pretrained(tmp_path)
    model.set_attn_implementation("eager")
    eager = logits(model)
    model.set_attn_implementation("sdpa")
    assert torch.allclose(logits(model), eager, atol=1e-4) is (cap is None)
    loaded = load_model(tmp_path)
    assert torch.allclose(logits(loaded), eager, atol=1e-4)
    assert (loaded.config._attn_implementation == "eager") is (cap is not None)


def test_a_capped_model_read_layer_by_layer_is_capped(tmp_path):
    gemma2(0.5).save_pretrained(tmp_path)
    for model in (load_skeleton(tmp_path), open_streamed(tmp_path, "", "cpu", tmp_path / "scratch")):
        assert model.config._attn_implementation == "eager"


@pytest.fixture
def multi_modal():
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = tf.Gemma3Config(
        text_config=SIZES, vision_config=vision | {"image_size": 28, "patch_size": 14}, image_token_index=90,
        boi_token_index=91, eoi_token_index=92, mm_tokens_per_image=4, tie_word_embeddings=False,
    )  # fmt: skip
    return tf.AutoModelForCausalLM.from_config(config)


def test_vision_layers_are_no_matrices_of_the_language_model(multi_modal):
    names = [matrix.name for matrix in matrices(multi_modal)]
    assert len(names) == 2 * 7 + 1
    assert all(name.startswith("model.language_model.") for name in names[:-1])
    assert names[-1] == "lm_head"
    assert len(matrices(multi_modal, head=False)) == 2 * 7


def test_what_stays_dense_in_a_multi_modal_model_is_said(multi_modal):
    parts = {part.what: part for part in untouched(multi_modal, {})}
    inside = model_size(multi_modal.get_decoder()).parameters + multi_modal.lm_head.weight.numel()
    assert parts["vision and audio layers"].parameters == model_size(multi_modal).parameters - inside


def test_a_plain_model_has_no_part_to_leave_out():
    model = tf.AutoModelForCausalLM.from_config(tf.LlamaConfig(**SIZES))
    assert len(matrices(model)) == 2 * 7 + 1
    assert "vision and audio layers" not in {part.what for part in untouched(model, {})}
