"""Surgical Feature-Space Decomposition (arXiv 2405.13039): the three tables of the authors' README.

Theirs searches on evaluation data, each task's own; here every search is on one set of training data.
"""

from __future__ import annotations

from .specs import Claim, Form, Item, Line, Panel, Paper

NAME = "sfsd"
SIX = ("boolq", "piqa", "hellaswag", "winogrande", "arc-easy", "arc-challenge")
_MODEL, _REVISION = "huggyllama/llama-7b", "4782ad278652c7c71b72204d462d6d01eaaf7549"
_PUBLISHED = {"samples": 512, "length": 128}
_MEAN = Panel("commonsense-6", SIX, "mean", "mean")
_SMALL_NOTE = (
    "Small form: toy-math replaces the six commonsense tasks; {finetune_steps} steps of finetuning come first, "
    "{recover_steps} after compression."
)


def _ratios_of(*percent: int) -> tuple[float, ...]:
    return tuple(round(100 / share, 4) for share in percent)


def _full(
    sweep: str, lines: tuple[Line, ...], ratios: tuple[float, ...], panels: tuple[Panel, ...], *departs: str
) -> Form:
    names = tuple(dict.fromkeys(name for panel in panels for name in panel.ours))
    return Form(
        sweep=f"{NAME}-{sweep}",
        task="commonsense",
        lines=lines,
        ratios=ratios,
        panels=panels,
        recipe="paper",
        benchmarks=names,
        context=(128,) if "wikitext2" in names else None,
        training_free=True,
        train_set="sfsd-mixture",
        departs=departs,
    )


def _small(sweep: str, lines: tuple[Line, ...], ratios: tuple[float, ...], *departs: str, scaled: str = "") -> Form:
    return Form(
        sweep=f"{NAME}-{sweep}-toy-math",
        task="toy-math",
        lines=lines,
        ratios=ratios,
        panels=(Panel("toy-math", ("toy-math",)),),
        recipe="small",
        recover_steps=0,
        caption=(_SMALL_NOTE, *filter(None, [scaled])),
        departs=departs,
    )


_SPACES = (Line("feature space", "afm", _PUBLISHED | {"head": False}), Line("weight space", "svd", {"head": False}))
_SMALL_SPACES = (Line("feature space", "afm"), Line("weight space", "svd"))
_BY_ACCURACY = {"policy": "surgical(metric=accuracy)"}
_SHORT_SEARCH = "The search has 4 rounds on 32 examples instead of 8 on 64."
_SMALL_BY_ACCURACY = {"policy": "surgical(metric=accuracy;rounds=4)", "probe_samples": 32}
_SMALL_BY_LOSS = {"policy": "surgical(rounds=4)", "probe_samples": 32}
_OWN_SEARCH = "ours searches ranks on one set of training data, theirs on evaluation data"

PAPER = Paper(
    NAME,
    "Surgical Feature-Space Decomposition of LLMs: Why, When and How?",
    "arXiv:2405.13039",
    (
        Item(
            NAME,
            "table",
            "uniform",
            "LLaMA-7B, uniform ranks: feature space against weight space, mean of six tasks",
            _MODEL,
            _full(
                "uniform",
                _SPACES,
                # The README states sizes, 5.4 and 3.4 billion parameters, of the model's 6.74.
                (round(6.738415616 / 5.4, 4), round(6.738415616 / 3.4, 4)),
                (_MEAN,),
                "ours compresses all decoder matrices, theirs a subset that is not known",
            ),
            _small("uniform", _SMALL_SPACES, (1.1, 1.25), scaled="Ratios {ratios} for 1.25x and 1.98x."),
            _REVISION,
            (
                Claim(
                    "feature space is better than weight space at both sizes (README)",
                    "above",
                    (1.0, 100.0),
                    (1.0, 100.0),
                ),
            ),
        ),
        Item(
            NAME,
            "table",
            "task-specific",
            "LLaMA-7B, ranks searched by accuracy: each of six tasks at three sizes",
            _MODEL,
            _full(
                "task-specific",
                (Line("sfsd", "sfsd", _BY_ACCURACY | {"head": False}),),
                _ratios_of(97, 96, 95, 94, 93, 90, 89, 87, 86, 84, 80, 76, 71),
                tuple(Panel(name, (name,), name=name) for name in SIX),
                _OWN_SEARCH,
            ),
            _small(
                "task-specific",
                (Line("sfsd", "sfsd", _SMALL_BY_ACCURACY),),
                _ratios_of(90, 80, 71),
                _OWN_SEARCH,
                scaled=_SHORT_SEARCH,
            ),
            _REVISION,
        ),
        Item(
            NAME,
            "table",
            "perplexity",
            "LLaMA-7B, ranks searched by perplexity: mean of six tasks and WikiText-2 at 128 tokens",
            _MODEL,
            _full(
                "perplexity",
                (Line("sfsd", "sfsd", {"head": False}),),
                _ratios_of(94, 87, 83, 79, 75, 70),
                (_MEAN, Panel("wikitext2", ("wikitext2",), name="wikitext2")),
                _OWN_SEARCH,
            ),
            _small(
                "perplexity",
                (Line("sfsd", "sfsd", _SMALL_BY_LOSS),),
                _ratios_of(94, 87, 79, 70),
                _OWN_SEARCH,
                scaled=_SHORT_SEARCH,
            ),
            _REVISION,
        ),
    ),
)
