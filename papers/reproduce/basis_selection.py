"""Basis Selection (arXiv 2405.15877): Figures 3 to 8.

The ratios behind the paper's own points are not known. Those here hold the ones that its text names (6x, 7x) and lie on
both sides of where it says that the methods part. ``additional_share`` is raised so that every matrix gets the paper's
32 new vectors at every ratio; this project's default would cap them.
"""

from __future__ import annotations

from .specs import Claim, Form, Item, Line, Panel, Paper

NAME = "basis-selection"
_FULL_BS = {"additional_dimension": 32, "additional_share": 0.9}
_METHODS = (Line("bs", "bs", _FULL_BS), Line("svd", "svd"), Line("fwsvd", "fwsvd"))
_SMALL_METHODS = (Line("bs", "bs"), Line("svd", "svd"), Line("fwsvd", "fwsvd"))
_SMALL_STEPS = 200
_RATIOS = "The ratios of the paper's own points are not known; these hold those that its text names."
_LESS_TRAINING = (
    "Small form: {finetune_steps} optimizer steps before compression and {recover_steps} after it, pruning included, "
    "for 3 and 6 epochs."
)
_TOP = "New vectors start from the strongest bases and are at most half of a matrix's uniform rank (recipe small)."


def _compared(task: str, benchmarks: tuple[str, ...], ratios: tuple[float, ...], train_set: str) -> list[Form]:
    return [
        Form(
            sweep=f"{NAME}-methods-{task}",
            task=task,
            lines=_METHODS,
            ratios=ratios,
            panels=(Panel(benchmark, (benchmark,)),),
            recipe="paper",
            train_set=train_set,
            caption=(_RATIOS,),
        )
        for benchmark in benchmarks
    ]


def _small(sweep: str, task: str, lines: tuple[Line, ...], ratios: tuple[float, ...], *more: str) -> Form:
    replaced = {"toy-math": "GSM8K and MATH alike", "toy-code": "HumanEval and MBPP alike"}[task]
    return Form(
        sweep=f"{NAME}-{sweep}-{task}",
        task=task,
        lines=lines,
        ratios=ratios,
        panels=(Panel(task, (task,)),),
        recipe="small",
        recover_steps=_SMALL_STEPS,
        caption=(f"{_LESS_TRAINING} {task} replaces {replaced}; ratios {{ratios}} for the paper's.", *more, _TOP),
    )


_DIMENSIONS = (
    Line("additional dimension 32", "bs", _FULL_BS),
    Line("additional dimension 0", "bs", {"additional_dimension": 0}),
)
_SMALL_DIMENSIONS = (
    Line("additional dimension 32", "bs", {"additional_dimension": 32}),
    Line("additional dimension 0", "bs", {"additional_dimension": 0}),
)
_PRUNINGS = (
    Line("100 prunings", "bs", _FULL_BS | {"prunings": 100}),
    Line("2 prunings", "bs", _FULL_BS | {"prunings": 2}),
)
_SMALL_PRUNINGS = (Line("20 prunings", "bs", {"prunings": 20}), Line("2 prunings", "bs", {"prunings": 2}))

_MATH = _compared("math", ("gsm8k", "math"), (2.0, 4.0, 6.0, 7.0, 8.0, 10.0), "metamathqa")
_CODE = _compared("code", ("humaneval", "mbpp"), (2.0, 3.0, 4.0, 5.0, 6.0, 7.0), "codealpaca")
_SMALL_MATH = _small("methods", "toy-math", _SMALL_METHODS, (1.5, 2.0, 3.0, 4.0))
_SMALL_CODE = _small("methods", "toy-code", _SMALL_METHODS, (1.5, 2.0, 3.0, 4.0))


def _parting(source: str, similar_below: float, ahead_from: float) -> tuple[Claim, ...]:
    return (
        Claim(
            f"the methods are similar below {similar_below:g}x ({source})",
            "similar",
            # Both ends of a range count, and "below" excludes its bound.
            (1.0, similar_below - 0.01),
            (1.0, 2.0),
        ),
        Claim(
            f"Basis Selection is ahead of SVD and FWSVD at {ahead_from:g}x ({source})",
            "above",
            (ahead_from, ahead_from),
            (3.0, 4.0),
        ),
    )


def _ablation(lines: tuple[Line, ...], ratios: tuple[float, ...], sweep: str) -> Form:
    return Form(
        sweep=f"{NAME}-{sweep}-math",
        task="math",
        lines=lines,
        ratios=ratios,
        panels=(Panel("gsm8k", ("gsm8k",), name="gsm8k"), Panel("math", ("math",), name="math")),
        recipe="paper",
        train_set="metamathqa",
        caption=(_RATIOS,),
    )


def _item(name: str, title: str, model: str, full: Form, small: Form, claims: tuple[Claim, ...]) -> Item:
    return Item(NAME, "figure", name, title, model, full, small, claims=claims)


PAPER = Paper(
    NAME,
    "Streamlining Language Models via Semantic Basis Analysis",
    "arXiv:2405.15877",
    (
        _item("3a", "Llama-2 7B, GSM8K", "llama2-7b", _MATH[0], _SMALL_MATH, _parting("§4.2", 6, 7)),
        _item("3b", "Llama-2 7B, MATH", "llama2-7b", _MATH[1], _SMALL_MATH, _parting("§4.2", 6, 7)),
        _item("4a", "Llama-2 13B, GSM8K", "llama2-13b", _MATH[0], _SMALL_MATH, _parting("§4.2", 6, 7)),
        _item("4b", "Llama-2 13B, MATH", "llama2-13b", _MATH[1], _SMALL_MATH, _parting("§4.2", 6, 7)),
        _item("5a", "Llama-2 7B, HumanEval", "llama2-7b", _CODE[0], _SMALL_CODE, _parting("§4.3", 4, 6)),
        _item("5b", "Llama-2 7B, MBPP", "llama2-7b", _CODE[1], _SMALL_CODE, _parting("§4.3", 4, 6)),
        _item("6a", "Llama-2 13B, HumanEval", "llama2-13b", _CODE[0], _SMALL_CODE, _parting("§4.3", 4, 6)),
        _item("6b", "Llama-2 13B, MBPP", "llama2-13b", _CODE[1], _SMALL_CODE, _parting("§4.3", 4, 6)),
        _item(
            "7",
            "ablation of the additional dimension, 32 against 0, mathematics",
            "llama2-7b",
            _ablation(_DIMENSIONS, (4.0, 6.0, 8.0, 10.0, 12.0), "dimension"),
            _small("dimension", "toy-math", _SMALL_DIMENSIONS, (2.0, 2.5, 3.0, 3.5)),
            (
                Claim(
                    "32 additional dimensions are better than none above 6x (§4.4)",
                    "above",
                    (6.01, 100.0),
                    (2.5, 100.0),
                ),
            ),
        ),
        _item(
            "8",
            "ablation of the number of prunings, 100 against 2, mathematics",
            "llama2-7b",
            _ablation(_PRUNINGS, (6.0, 8.0, 10.0, 12.0, 14.0), "prunings"),
            _small(
                "prunings",
                "toy-math",
                _SMALL_PRUNINGS,
                (2.0, 2.5, 3.0, 3.5),
                "20 prunings for 100: a third of the steps after compression are the pruning phase.",
            ),
            (
                Claim(
                    "100 prunings are better than 2 above 10x (§4.4)",
                    "above",
                    (10.01, 100.0),
                    (2.5, 100.0),
                ),
            ),
        ),
    ),
)
