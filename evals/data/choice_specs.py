"""Datasets of the commonsense and bias benchmarks: hub repository, pinned commit, fields, counts.

The hub repositories are those that lm-evaluation-harness 0.4.13 names in its tasks. Commits were verified against other
projects' published pins, not by reading the hub. Where none could be verified ``revision`` is None.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .specs import DatasetSpec, SplitSpec

_ARC_FIELDS = ("id", "question", "choices", "answerKey")
_ARC_REVISION = "210d026faf9955653af8916fad021475a3f00453"

_STEREOSET_LABELS = ("anti_stereotype", "stereotype", "unrelated")
"""Meaning of the hub's ``gold_label`` 0, 1, 2."""


def stereoset_record(row: Mapping[str, Any], config: str | None) -> dict[str, Any]:
    """Turn a row of the hub's McGill-NLP/stereoset, whose three sentences are a list, into a record."""
    labels = (_STEREOSET_LABELS[int(label)] for label in row["sentences"]["gold_label"])
    sentences = dict(zip(labels, row["sentences"]["sentence"], strict=True))
    same = {name: row[name] for name in ("id", "target", "bias_type", "context")}
    return same | {"kind": config} | sentences


_SPECS = (
    DatasetSpec(
        "piqa",
        "baber/piqa",
        ("goal", "sol1", "sol2", "label"),
        "AFL-3.0",
        {
            "train": SplitSpec(16113),
            "validation": SplitSpec(1838, "6c6cbbe31e3c5a928477543aa38508b6b722f8a405c89325b55c1f73db37421c"),
        },
        revision="142f6d7367fd9877f0fb3b5734ea6a545f54cdd1",
    ),
    DatasetSpec(
        "hellaswag",
        "Rowan/hellaswag",
        ("ind", "activity_label", "ctx_a", "ctx_b", "ctx", "label", "endings"),
        "MIT",
        {
            "train": SplitSpec(39905),
            "validation": SplitSpec(10042),
            # A random sample that exists as a local file only; never reported as HellaSwag.
            "validation_1000": SplitSpec(1000, "20d8acfe8525c4d55b5a48b2cda4a35a5d2b7ea49b9e355c88cf239754adda03"),
        },
        revision="218ec52e09a7e7462a5400043bb9a69a41d06b76",
    ),
    DatasetSpec(
        "winogrande",
        "allenai/winogrande",
        ("sentence", "option1", "option2", "answer"),
        "CC BY",
        {
            "train": SplitSpec(40398),
            "validation": SplitSpec(1267, "a5b07c0d7c24e3a2cb8b3c4cbfade9a34422a2cfd8d0260ca23914b440685833"),
        },
        configs=("winogrande_xl",),
        revision="01e74176c63542e6b0bcb004dcdea22d94fb67b5",
    ),
    DatasetSpec(
        "arc_easy",
        "allenai/ai2_arc",
        _ARC_FIELDS,
        "CC BY-SA",
        {
            "train": SplitSpec(2251),
            "validation": SplitSpec(570, "d74c8fcbf83ca6aadcd1189f4c51ba513befcd0e059b43a7f413af5da5056733"),
            "test": SplitSpec(2376, "8ee5e0800226987e670aed741f45f7e7ad2a7e97edc25cb711046dfa06259dd8"),
        },
        configs=("ARC-Easy",),
        revision=_ARC_REVISION,
    ),
    DatasetSpec(
        "arc_challenge",
        "allenai/ai2_arc",
        _ARC_FIELDS,
        "CC BY-SA",
        {
            "train": SplitSpec(1119),
            "validation": SplitSpec(299, "420d696aeb53c74bc322a41165771da927fea472940f72f5166a0fa4e0251c26"),
            "test": SplitSpec(1172, "c8dcc96804fb0769842131d19e7df19c4b3d94c44c589e062bc6ec75a1f1ad58"),
        },
        configs=("ARC-Challenge",),
        revision=_ARC_REVISION,
    ),
    DatasetSpec(
        "boolq",
        "aps/super_glue",
        ("question", "passage", "idx", "label"),
        "CC BY-SA",
        {
            "train": SplitSpec(9427),
            "validation": SplitSpec(3270, "6a58b54f0d77440eec9e6408b798e423dba3432a07ac016b73ac2e83a7740188"),
        },
        configs=("boolq",),
        revision="3de24cf8022e94f4ee4b9d55a6f539891524d646",
    ),
    DatasetSpec(
        "openbookqa",
        "allenai/openbookqa",
        ("id", "question_stem", "choices", "answerKey"),
        "Apache-2.0",
        {
            "train": SplitSpec(4957),
            "test": SplitSpec(500, "9eebc22f6d37312b97e28b21d719a4925bff8bb6e0512ed2bf378ed4466daa04"),
        },
        configs=("main",),
        revision="388097ea7776314e93a529163e0fea805b8a6454",
    ),
    DatasetSpec(
        "crows_pairs",
        "jannalu/crows_pairs_multilingual",
        ("sent_more", "sent_less", "stereo_antistereo", "bias_type"),
        "CC BY-SA",
        {
            # The 1,508 pairs of Nangia et al. 2020, as published in nyu-mll/crows-pairs.
            "test": SplitSpec(1508, "c3484a922b6f47830b4d08befca1b5960163fe9447fb481618febbcef4feeb05"),
            # The hub's English set is the revision of Névéol et al. 2022, which lm-evaluation-harness measures.
            "revised": SplitSpec(1677, hub_split="test"),
        },
        configs=("english",),
    ),
    DatasetSpec(
        "stereoset",
        "McGill-NLP/stereoset",
        ("id", "kind", "target", "bias_type", "context", "stereotype", "anti_stereotype", "unrelated"),
        "CC BY-SA",
        {"validation": SplitSpec(4229, "c9091097a5cc2a1f6d4e8e3e0191ac5629ea98cda6d3fce3663e97b9b222971d")},
        configs=("intersentence", "intrasentence"),
        from_hub=stereoset_record,
    ),
    DatasetSpec(
        "winobias",
        "",
        ("index", "stereotype", "type", "split", "sentence"),
        "MIT",
        {"test": SplitSpec(3168, "2cf716a2323e7a9fd7be4699c3c6d6ee67c182e88369d050f852079f80c2afc8")},
        origin="made from wino/data of github.com/uclanlp/corefBias",
    ),
)
choice_specs: dict[str, DatasetSpec] = {spec.name: spec for spec in _SPECS}
