"""Equal bytes: the ratio that is solved for a share of the bfloat16 model's bytes, and what is refused."""

from collections import Counter

import pytest
import yaml
from commands import bench
from sweeps import changed, small_sweep
from typed_stages import quantise_stage

from lowrank_bench.cli.config_options import OPTIONS
from lowrank_bench.foundation.errors import UserError
from lowrank_bench.methods.base import create_method
from lowrank_bench.models.loading import load_skeleton
from lowrank_bench.models.presets import resolve_model
from lowrank_bench.models.quantised.scheme import CONTROLS
from lowrank_bench.models.quantised.size import packed_bytes
from lowrank_bench.results.sweep import run_sweep
from lowrank_bench.runners.keywords import config_of
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
    plan = make_plan(small_sweep(tmp_path, methods=["svd"], bytes=(0.5,), bits=(16, 8)))
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
        ({"bytes": (0.5,), "ratios": (2.0, 4.0)}, "--bytes solves the ratio of each method; leave --ratios out"),
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
        ({"controls": ("rtn4+r:ranks=3",)}, "the control 'rtn4\\+r' has no option 'ranks'; it has group, "),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        small_sweep(tmp_path, **{"methods": ["svd"]} | options)


@pytest.mark.parametrize("ratios", ["2,4", "4,2"])
@pytest.mark.parametrize("in_file", [False, True])
def test_ratios_beside_bytes_are_refused_whatever_they_are(tmp_path, ratios, in_file):
    """In one sentence, also where they equal the default, on one command line or in one file."""
    options = ["--methods", "svd", "--model", "tiny", "--task", "toy-math", "--out", str(tmp_path / "runs")]
    (tmp_path / "sweep.yaml").write_text(f"ratios: [{ratios}]\nbytes: [0.5]\n")
    given = ["--config", str(tmp_path / "sweep.yaml")] if in_file else ["--ratios", ratios, "--bytes", "0.5"]
    done = bench("run", *options, *given, "--dry-run")
    assert done.returncode == 2
    sentence = "error: --bytes solves the ratio of each method; leave --ratios out, or --bytes"
    assert " ".join(done.stderr.split()) == sentence
    assert in_file or bench("run", *options, "--bytes", "0.5", "--dry-run").returncode == 0


FILE = {"methods": ["svd"], "model": "tiny", "task": "toy-math"}


@pytest.mark.parametrize(
    ("more", "typed", "ratios", "shares"),
    [
        ({"ratios": [2, 3]}, {"bytes": "0.5"}, (2.0, 4.0), (0.5,)),
        ({"bytes": [0.5]}, {"ratios": "3"}, (3.0,), None),
        ({"bytes": [0.5]}, {"bytes": "none"}, (2.0, 4.0), None),
        ({"ratios": [3]}, {"bytes": "none"}, (3.0,), None),
    ],
)
def test_what_is_typed_takes_the_place_of_either_in_a_file(tmp_path, more, typed, ratios, shares):
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(FILE | more))
    config = config_of(file, typed)
    assert (config.ratios, config.bytes) == (ratios, shares)


@pytest.mark.parametrize("option", ["controls", "report-to", "tune", "bytes", "methods", "recovery"])
@pytest.mark.parametrize("empty", ["", ",", " "])
def test_an_empty_list_is_refused_and_takes_nothing_out(tmp_path, option, empty):
    """An unset shell variable does not take out what the file says."""
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(FILE | {"controls": ["rtn-int8"]}))
    done = bench("run", "--config", tmp_path / "sweep.yaml", f"--{option}", empty, "--dry-run", cwd=tmp_path)
    assert done.returncode == 2
    assert "is empty; write its items with commas" in " ".join(done.stderr.split())


def test_what_help_calls_none_can_be_typed_over_a_file(tmp_path):
    """`none` empties controls, grid, trackers and shares, on the command line, in Python and in YAML."""
    set_there = {"controls": ["rtn-int8"], "training": {"tune": "lr=1e-4,1e-3"}, "execution": {"report_to": ["wandb"]}}
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(FILE | set_there | {"bytes": [0.5]}))
    emptied = [option.name for option in OPTIONS.values() if option.default == "none"]
    assert sorted(emptied) == ["bytes", "controls", "report_to", "tune"]
    config = config_of(file, dict.fromkeys(emptied, "none"))
    assert (config.bytes, config.controls, config.training.tune, config.execution.report_to) == (None, (), None, ())
    typed = [word for name in emptied for word in (f"--{name.replace('_', '-')}", "none")]
    done = bench("run", "--config", file, *typed, "--out", tmp_path / "runs", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "rtn-int8" not in done.stdout
    file.write_text(yaml.safe_dump(FILE | {"controls": "none", "training": {"tune": "none"}}))
    config = config_of(file, {})
    assert (config.controls, config.training.tune) == ((), None)


def test_the_key_depends_on_the_scheme():
    assert len({quantise_stage().key, *(quantise_stage(scheme=scheme).key for scheme in CONTROLS.values())}) == 2


def corrected(tmp_path, *controls, **axis):
    free = {"training_free": True, "finetune": {}, "recover": {}}
    plan = make_plan(small_sweep(tmp_path, methods=["svd"], controls=list(controls), **free, **axis))
    return plan, {cell.label: cell for cell in plan.cells if cell.control}


@pytest.mark.parametrize("share", [0.35, 0.5, 0.9])
def test_the_rank_of_a_correction_is_the_largest_of_the_bytes_that_are_left(tmp_path, share):
    plan, cells = corrected(tmp_path, "rtn4+r", bytes=(share,), bits=(16,))
    (cell,) = cells.values()
    rank = cell.correction.rank
    assert cell.label == f"rtn4+r:rank={rank}"
    assert packed_bytes(plan.skeleton, cell.scheme, 2, rank) <= 2 * share * plan.parameters
    assert packed_bytes(plan.skeleton, cell.scheme, 2, rank + 1) > 2 * share * plan.parameters
    assert plan.control_notes == []


def test_shares_that_a_correction_cannot_meet_are_named_and_none_at_all_is_refused(tmp_path):
    plan, cells = corrected(tmp_path, "rtn4+r", "rtn4+r:rank=5", bytes=(0.25, 0.4, 0.5), bits=(16,))
    assert len(cells) == 3
    assert [note.partition(" takes")[0] for note in plan.control_notes] == ["rtn4+r"]
    assert plan.control_notes[0].endswith("so it has no row at 0.25")
    with pytest.raises(UserError, match=r"--bytes 0.25 is out of reach: rtn4\+r takes 0\.3\d+ to .*rtn4\+r:rank=16"):
        corrected(tmp_path, "rtn4+r", bytes=(0.25,), bits=(16,))


def test_solved_ranks_are_multiples_where_those_of_methods_are(tmp_path):
    _, cells = corrected(tmp_path, "rtn4+r", bytes=(0.5,), bits=(16,), rank_multiple=8)
    assert [cell.correction.rank % 8 for cell in cells.values()] == [0]


def test_rank_zero_is_the_stage_of_the_plain_control(tmp_path):
    _, cells = corrected(tmp_path, "rtn-int4", "rtn4+r:rank=0", "rtn4+r", ratios=(2.0,))
    plain, zero, usual = (cells[label].stages["quantise"] for label in ("rtn-int4", "rtn4+r:rank=0", "rtn4+r"))
    assert plain == zero != usual
    assert cells["rtn4+r"].correction.rank == 16


def test_a_plain_correction_reads_no_data(tmp_path):
    plan, cells = corrected(tmp_path, "rtn4+r", "rtn4+r:whiten=false", ratios=(2.0,))
    data = {label: plan.stages[cell.stages["quantise"]].data for label, cell in cells.items()}
    assert data["rtn4+r"].task == "toy-math"
    assert data["rtn4+r:whiten=false"] is None


@pytest.mark.parametrize("typed", ["svd:embeddings=true", "svd:embeddings=false", "svd"])
def test_a_method_that_factorises_embeddings_has_them_rounded_where_they_stay_dense(tmp_path, typed):
    plan = make_plan(small_sweep(tmp_path, methods=[typed], ratios=[2], bits=(16, 8)))
    schemes = {stage.spec.scheme.embeddings for stage in plan.stages.values() if stage.kind == "quantise"}
    assert schemes == {"true" in typed}


@pytest.mark.parametrize("policy", ["uniform", "energy", "modules(embed_tokens=30)"])
def test_the_packed_file_has_the_bytes_that_were_asked_for_whatever_stays_dense(tmp_path, policy):
    """With 30 times the share of others the embedding stays dense, as io-svd left Gemma's at half of the bytes."""
    free = {"training_free": True, "finetune": {}, "recover": {}, "limit": 1, "max_new_tokens": 2}
    config = small_sweep(tmp_path, methods=[f"svd:embeddings=true,policy={policy}"], bytes=(0.5,), bits=(8,), **free)
    (record,) = run_sweep(config).records.query("headline and method != 'none'").itertuples()
    assert 0.97 < record.bytes / (0.5 * 2 * record.params_original) < 1.02
