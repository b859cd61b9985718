"""Equal bytes: the ratio that is solved for a share of the bfloat16 model's bytes, and what is refused."""

from collections import Counter

import pytest
from sweeps import changed, small_sweep
from typed_stages import quantise_stage

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.methods.base import create_method
from lowrank_bench.models.loading import load_skeleton
from lowrank_bench.models.presets import resolve_model
from lowrank_bench.models.quantised.scheme import CONTROLS
from lowrank_bench.runners.plan import make_plan
from lowrank_bench.runners.points import ByteCount

SVD = {"methods": ["svd"], "ratios": [2]}


@pytest.fixture(scope="module")
def skeleton():
    return load_skeleton(resolve_model("tiny", None).location)


@pytest.mark.parametrize("name", ["svd", "basis-sharing", "joint-rank-k", "afm", "bs"])
@pytest.mark.parametrize("share", [0.5, 0.35, 0.25])
@pytest.mark.parametrize("bits", [16, 8])
def test_the_solved_ratio_meets_the_bytes_and_a_smaller_one_does_not(skeleton, name, share, bits):
    count = ByteCount(skeleton, create_method(name, {}), 2)
    size = share * 2 * 809_984
    ratio = count.ratio_for(size, bits)
    assert 0.985 * size < count.at(ratio, bits) <= size
    assert bits == 8 or ratio == pytest.approx(1 / share, rel=1e-4)
    assert count.at(ratio * 0.98, bits) > size


@pytest.mark.parametrize(("share", "bits"), [(0.9, 8), (0.02, 8), (0.02, 16)])
def test_a_share_out_of_reach_names_those_in_reach(skeleton, share, bits):
    with pytest.raises(
        UserError, match=rf"--bytes {share} is out of reach for svd in {bits} bits, which takes 0\.\d+ to"
    ):
        ByteCount(skeleton, create_method("svd", {}), 2).ratio_for(share * 2 * 809_984, bits)


def test_default_options_add_no_stage_and_change_no_key(tmp_path):
    plain = make_plan(small_sweep(tmp_path, **SVD))
    more = make_plan(small_sweep(tmp_path, **SVD, bits=(16, 8), controls=["rtn-int8", "rtn-int4:group=64"]))
    assert set(plain.stages) < set(more.stages)
    assert not any(stage.kind == "quantise" for stage in plain.stages.values())
    added = Counter(more.stages[key].kind for key in set(more.stages) - set(plain.stages))
    assert added == {"quantise": 3, "evaluate": 3}
    labels = [cell.label for cell in more.cells]
    assert labels == ["finetuned", "svd", "svd:bits=8", "rtn-int8", "rtn-int4:group=64"]


def test_rounding_comes_after_recovery_and_before_evaluation(tmp_path):
    plan = make_plan(small_sweep(tmp_path, **SVD, bits=(8,), controls=["rtn-int4"]))
    for cell in plan.cells[1:]:
        (evaluation,) = cell.evaluations.values()
        assert plan.stages[evaluation].inputs["model"].startswith(f"{cell.stages['quantise']}/")
        before = cell.stages["finetune" if cell.control else "recover"]
        assert plan.stages[cell.stages["quantise"]].inputs["model"].startswith(f"{before}/")


def test_equal_bytes_save_bfloat16_and_give_each_number_of_bits_its_ratio(tmp_path):
    plan = make_plan(small_sweep(tmp_path, methods=["svd"], bytes=(0.5,), bits=(16, 8), ratios=(2.0, 4.0)))
    ratios = {cell.label: cell.ratio for cell in plan.cells}
    assert ratios["svd"] == 2.0
    assert 1 < ratios["svd:bits=8"] < 1.2
    assert {stage.spec.save_dtype for stage in plan.stages.values() if hasattr(stage.spec, "save_dtype")} == {
        "bfloat16"
    }
    named = make_plan(changed(plan.config, save_dtype="float32"))
    assert {cell.label: cell.ratio for cell in named.cells}["svd"] == 4.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bytes": (0.5,), "ratios": (3.0,)}, "--bytes solves the ratio of each method; leave --ratios out"),
        ({"bytes": (1.5,)}, "1.5 is no share of the bfloat16 model's bytes; use a number between 0 and 1"),
        ({"bytes": (0.5, 0.5)}, "the share of bytes 0.5 is given twice"),
        ({"bits": (4,)}, "factors cannot be stored in 4 bits; use 16"),
        ({"bits": (8, 8)}, "the number of bits 8 is given twice"),
        (
            {"methods": ["svd", "rtn-int4:group=64"]},
            "no low-rank method but a control; write --controls rtn-int4:group=64",
        ),
        ({"methods": ["svd:bits=8"]}, "bits is no option of svd: .* write --bits 8, or --bits 16,8 for both"),
        ({"controls": ("rtn-int5",)}, "unknown control 'rtn-int5'"),
        ({"controls": ("rtn-int8", "rtn-int8")}, "the control rtn-int8 is given twice"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        small_sweep(tmp_path, **{"methods": ["svd"], "ratios": (2.0, 4.0)} | options)


def test_the_key_depends_on_the_scheme():
    assert len({quantise_stage().key, *(quantise_stage(scheme=scheme).key for scheme in CONTROLS.values())}) == 2
