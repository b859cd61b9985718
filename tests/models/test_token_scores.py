"""Scores of tokens from blocks of logits equal those from all logits, and take the memory of a block."""

import pytest
import torch
import transformers as tf
from served_models import factorise_embedding
from torch.profiler import ProfilerActivity, profile

from lowrank_bench.models import token_scores
from lowrank_bench.models.architectures import ARCHITECTURES, CLASSIC, TODAY, random_model
from lowrank_bench.models.token_scores import LOGIT_BYTES, TokenScorer, block_rows

SIZES = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0, "eos_token_id": 2,
    "bos_token_id": 1,
}  # fmt: skip
HEADS = {
    "capped logits": tf.Gemma2Config(**SIZES, final_logit_softcapping=0.5),
    "scaled logits": tf.CohereConfig(**SIZES, logit_scale=0.25),
    "divided logits": tf.GraniteConfig(**SIZES, logits_scaling=3.0),
    "head with a bias": tf.PhiConfig(**{name: size for name, size in SIZES.items() if name != "head_dim"}),
    "no base model by that name": tf.Llama4TextConfig(**SIZES),
    "experts": tf.MixtralConfig(**SIZES, num_local_experts=4, output_router_logits=True),
    "a state and no attention": tf.RwkvConfig(vocab_size=96, hidden_size=32, num_hidden_layers=2, context_length=64),
}


def from_config(config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = tf.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "bias" in name:
                    parameter.add_(torch.randn_like(parameter))
    return model.eval()


def batch():
    """Three padded sequences; of the first the last tokens alone are scored, of the third none."""
    ids = torch.randint(3, 96, (3, 24), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 15:] = mask[2, 7:] = 0
    targets = mask.bool()
    targets[:, 0] = targets[0, :18] = targets[2] = False
    return ids, mask, targets


@torch.inference_mode()
def from_all_logits(model, ids, mask, targets):
    scores = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float().log_softmax(-1)
    sequence, token = targets.nonzero(as_tuple=True)
    return scores[sequence, token - 1, ids[sequence, token]]


@torch.inference_mode()
def scored(model, ids, mask, targets):
    scorer = TokenScorer(model)
    return scorer.score(ids, mask, targets), scorer.in_blocks


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of five positions, so that they end within sequences."""
    monkeypatch.setattr(token_scores, "LOGIT_BYTES", 5 * 4 * SIZES["vocab_size"])


# torch's grouped product wants rows of 16 bytes, and these experts have 8 in bfloat16.
@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, torch.float32) for name in ARCHITECTURES] + [(name, torch.bfloat16) for name in CLASSIC + TODAY],
)
def test_every_architecture_is_scored_in_blocks(name, dtype):
    model = random_model(name, dtype=dtype)
    scores, in_blocks = scored(model, *batch())
    assert in_blocks
    assert scores.dtype == torch.float32
    tolerance = {"abs": 1e-5} if dtype == torch.float32 else {"abs": 0.05}
    assert scores.tolist() == pytest.approx(from_all_logits(model, *batch()).tolist(), **tolerance)


@pytest.mark.parametrize("name", HEADS)
def test_what_a_model_does_behind_its_head_is_done_to_each_block(name):
    model = from_config(HEADS[name])
    scores, in_blocks = scored(model, *batch())
    assert in_blocks
    assert scores.tolist() == pytest.approx(from_all_logits(model, *batch()).tolist(), abs=1e-5)


def test_a_factorised_head_is_applied_factor_by_factor():
    model = factorise_embedding(random_model("gemma"))
    inner = []
    model.lm_head.register_forward_hook(lambda _, inputs, output: inner.append((inputs[0].shape, output.shape)))
    scores, in_blocks = scored(model, *batch())
    assert in_blocks
    assert inner[-1] == ((1, 5, 32), (1, 5, 96))  # 20 positions are scored
    assert scores.tolist() == pytest.approx(from_all_logits(model, *batch()).tolist(), abs=1e-5)


class Mixing(tf.LlamaForCausalLM):
    """Logits that depend on those of earlier positions."""

    def forward(self, *args, **options):
        output = super().forward(*args, **options)
        output.logits = output.logits.cumsum(1)
        return output


class Skipping(tf.LlamaForCausalLM):
    """Logits that depend on the ids beside the last hidden states."""

    def forward(self, input_ids, **options):
        output = super().forward(input_ids, **options)
        output.logits = output.logits + input_ids[..., None] if output.logits.shape[0] > 1 else output.logits
        return output


class Plain(tf.LlamaModel):
    """A body that returns a tuple."""

    def forward(self, *args, **options):
        return super().forward(*args, **options).to_tuple()


class OfPlain(tf.LlamaForCausalLM):
    """Reads the tuple."""

    def forward(self, input_ids, attention_mask=None, use_cache=False):
        (hidden,) = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)
        return tf.modeling_outputs.CausalLMOutput(logits=self.lm_head(hidden))


@pytest.mark.parametrize("kind", [Mixing, Skipping, OfPlain])
def test_a_model_that_is_not_a_body_and_a_head_has_all_its_logits_made(kind):
    model = kind(tf.LlamaConfig(**SIZES)).eval()
    if kind is OfPlain:
        model.model.__class__ = Plain
    scores, in_blocks = scored(model, *batch())
    assert not in_blocks
    assert torch.equal(scores, from_all_logits(model, *batch()))


def test_the_model_is_left_as_it_was_also_after_an_error():
    model = random_model("llama")
    scorer = TokenScorer(model)
    with torch.inference_mode():
        before = scorer.score(*batch())
        assert "forward" not in model.model.__dict__
        hook = model.lm_head.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            scorer.score(*batch())
        hook.remove()
        assert "forward" not in model.model.__dict__
        model.model.forward = own = model.model.forward  # as accelerate leaves it
        assert torch.equal(scorer.score(*batch()), before)
        assert model.model.__dict__["forward"] is own


def test_weights_that_are_no_numbers_are_scored_in_blocks_too():
    model = random_model("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    scores, in_blocks = scored(model, *batch())
    assert in_blocks
    assert scores.isnan().all()


@torch.inference_mode()
def traced_peak(work):
    """Return the most bytes that the CPU allocator held at once beside what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        work()
    current = peak = 0
    for event in trace.profiler.kineto_results.events():
        if event.name() == "[memory]":
            current += event.nbytes()
            peak = max(peak, current)
    return peak


def test_a_large_vocabulary_takes_the_memory_of_one_block(monkeypatch):
    monkeypatch.setattr(token_scores, "LOGIT_BYTES", LOGIT_BYTES)
    sizes = SIZES | {"vocab_size": 262_144, "hidden_size": 16, "num_hidden_layers": 1}
    model = from_config(tf.LlamaConfig(**sizes))
    ids = torch.randint(3, 96, (2, 400))
    mask, targets = torch.ones_like(ids), torch.ones_like(ids, dtype=torch.bool)
    targets[:, 0] = False
    one_block = torch.zeros_like(targets)
    one_block[:, -block_rows(model.config) // 2 :] = True
    scorer = TokenScorer(model)
    small = traced_peak(lambda: scorer.score(ids, mask, one_block))
    large = traced_peak(lambda: scorer.score(ids, mask, targets))
    everything = 4 * ids.numel() * sizes["vocab_size"]
    assert everything > 6 * LOGIT_BYTES
    assert LOGIT_BYTES <= small < 1.5 * LOGIT_BYTES
    assert large < 1.1 * small
    assert scorer.in_blocks
    probe = traced_peak(lambda: model(input_ids=ids[:, :128], use_cache=False))
    assert probe >= 4 * 2 * 128 * sizes["vocab_size"]  # the trace sees logits where they are made
