"""What trainings are estimated to take: properties of the estimate, and measured peaks beside it."""

from pathlib import Path

import pytest
import torch
import transformers
from sweeps import small_sweep
from torch import nn

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.methods.base import create_method
from lowrank_bench.models import pass_memory
from lowrank_bench.models.matrices import model_size
from lowrank_bench.models.pass_memory import pass_peak
from lowrank_bench.runners.estimates.memory import check_plan
from lowrank_bench.runners.estimates.stage_peaks import check_training
from lowrank_bench.runners.plan import make_plan
from lowrank_bench.runners.training.memory import STATE_BYTES, training_peak
from lowrank_bench.runners.training.settings import TrainSettings

TRAIN = TrainSettings(batch_size=16, micro_batch_size=4, gradient_checkpointing=False, precision="float32")


def skeleton(layers: int = 2, **changes: object) -> nn.Module:
    """Return a Llama on the meta device whose head and activations matter."""
    shape = {"hidden_size": 64, "intermediate_size": 176, "num_attention_heads": 4, "num_key_value_heads": 4}
    config = transformers.LlamaConfig(**shape, num_hidden_layers=layers, vocab_size=500, **changes)
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


def changed(**changes: object) -> TrainSettings:
    """Return the settings with changes."""
    return TRAIN.model_copy(update=changes)


def test_more_processes_never_need_more_of_a_gpu() -> None:
    """Shares shrink, and so may the micro batch."""
    model = skeleton()
    peaks = [training_peak(model, TRAIN, 64, "cuda", "fsdp2", count).device for count in (2, 4, 16)]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[0] > peaks[-1]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_checkpointing_never_needs_more(precision: str) -> None:
    """And less where activations are what fills memory."""
    model = skeleton()
    plain, again = (
        training_peak(model, changed(precision=precision, gradient_checkpointing=on), 128, "cpu").device
        for on in (False, True)
    )
    assert again < plain


def test_activations_grow_with_the_batch() -> None:
    """Twice the examples take twice the memory beside weights and gradients, but for masks and positions."""
    small, large = (pass_peak(skeleton(), size, 64, False, False).later for size in (4, 8))
    assert large == pytest.approx(2 * small, rel=0.02)


def test_moments_on_the_host_leave_the_gpu_by_eight_bytes_a_parameter() -> None:
    """Where the pass is the peak, to the byte; 8-bit moments leave a quarter of them and scales."""
    model, settings = skeleton(), changed(optimizer="adamw_torch_fused")
    own, host, narrow = (
        training_peak(model, settings, 256, "cuda", placement) for placement in ("device", "host-moments", "8-bit")
    )
    moments = 8 * model_size(model).parameters
    assert own.device - host.device == moments
    assert 0 < host.host - own.host <= moments
    assert host.device + moments / 4 < narrow.device < host.device + moments / 3


@pytest.mark.parametrize("optimizer", sorted(STATE_BYTES))
def test_state_is_counted_by_optimizer(optimizer: str) -> None:
    """Each parameter's bytes in the certain part, beside weights and gradients."""
    assert optimizer in [name.value for name in transformers.training_args.OptimizerNames]
    model = skeleton()
    parameters = model_size(model).parameters
    peak = training_peak(model, changed(optimizer=optimizer), 32, "cpu")
    assert peak.least - 8 * parameters == pytest.approx(STATE_BYTES[optimizer] * parameters, abs=1000)
    assert not peak.note


def test_an_optimizer_without_figures_is_named() -> None:
    """And counted as AdamW."""
    lomo = training_peak(skeleton(), changed(optimizer="lomo"), 32, "cpu")
    assert "lomo" in lomo.note
    assert lomo.least == training_peak(skeleton(), TRAIN, 32, "cpu").least


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("tied", [True])
def test_few_blocks_tell_of_many(monkeypatch: pytest.MonkeyPatch, checkpointing: bool, tied: bool) -> None:
    """Extrapolated from two and three blocks, the same as with all seven."""
    model = skeleton(7, tie_word_embeddings=tied)
    few = pass_memory._count(model, 4, 64, checkpointing, False)
    monkeypatch.setattr(pass_memory, "_MORE", 7)
    whole = pass_memory._count(model, 4, 64, checkpointing, False)
    assert few.first == pytest.approx(whole.first, rel=0.01)
    assert few.later == pytest.approx(whole.later, rel=0.01)


def test_what_is_kept_is_what_autograd_keeps() -> None:
    """One linear layer and its loss, counted by hand: the input is the caller's, logits and their gradient are not."""
    model, tokens, words = skeleton(1), 4 * 64, 500
    peak = pass_peak(model, 4, 64, False, False)
    assert peak.counted
    assert peak.later >= 3 * 4 * tokens * words  # log-probabilities, their gradient, the logits' gradient


def test_code_that_asks_for_values_is_guessed() -> None:
    """With a note in the peak, not an error."""

    class Asking(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * float(x.sum())

    model = skeleton()
    model.model.layers[0].mlp.act_fn = Asking()
    assert not pass_memory.pass_peak(model, 4, 33, False, False).counted
    assert "guessed" in training_peak(model, TRAIN, 33, "cpu").note


def test_a_method_that_trains_counts_its_own_layers() -> None:
    """Basis Selection has no gradients and moments of its bases."""
    model = skeleton()
    bases = training_peak(model, TRAIN, 32, "cpu", method=create_method("bs"))
    assert bases.least < training_peak(model, TRAIN, 32, "cpu").least
    assert isinstance(model.model.layers[0].mlp.up_proj, nn.Linear)


def test_a_training_that_cannot_fit_is_refused_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what it needs, what is free and what to type; nothing is written."""
    plan = make_plan(small_sweep(tmp_path))
    kinds = {stage.kind for stage in plan.stages.values() if stage.title in plan.trainings}
    assert {"finetune", "recover"} <= kinds
    check_plan(plan, plan.pending())
    monkeypatch.setattr("lowrank_bench.runners.estimates.machine.free_memory", lambda device="cpu": 1000)
    plan = make_plan(small_sweep(tmp_path))
    with pytest.raises(UserError, match=r"finetune .* needs at least .* GiB .* are free on cpu; use .*--accelerate"):
        check_plan(plan, plan.pending())
    assert not plan.store.keys()


def test_an_evaluation_that_cannot_fit_is_refused_before_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only when the finetuned model is there; a done evaluation refuses nothing."""
    plan = make_plan(small_sweep(tmp_path))
    monkeypatch.setattr("lowrank_bench.models.footprint.free_memory", lambda device: 1000)
    with pytest.raises(UserError, match=r"the model 'tiny.* needs"):
        check_plan(plan, plan.pending())
    check_plan(plan, [key for key in plan.pending() if plan.stages[key].kind != "evaluate"])


def test_a_training_that_may_not_fit_is_warned_of() -> None:
    """With fields of the configuration that make it smaller."""
    peak = training_peak(skeleton(), TRAIN, 64, "cpu")
    assert not check_training(peak, "finetune", TRAIN, "cpu", peak.device)
    note = check_training(peak, "finetune", TRAIN, "cpu", peak.device - 1)
    assert "gradient_checkpointing: true and micro_batch_size: 1 and optimizer: adafactor" in note
