"""The datasets that are known: hub repository, pinned commit, fields, and what the published splits hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class SplitSpec:
    """One split.

    Attributes:
        records: published number of records, or None where it is not checked.
        sha256: content hash of the published split, or None where no published copy has been seen.
        hub_split: the split's name on the hub.
        head: only the first ``head`` records of the hub's split are used (it is streamed then).
    """

    records: int | None = None
    sha256: str | None = None
    hub_split: str = ""
    head: int | None = None


@dataclass(frozen=True)
class DatasetSpec:
    """One dataset.

    Attributes:
        name: name of the local folder and of the dataset everywhere else.
        hub_id: hub repository; empty where the hub has no copy in a form that is read here.
        fields: fields that every record must have; others are dropped.
        licence: licence of the data.
        configs: hub configurations, joined in this order; empty for the default one.
        revision: commit of the hub repository; None means that none has been verified, so that the user has to name
            one (``LOWRANK_BENCH_REVISIONS``, see `datasets.pinned_revision`).
        splits: split name to what is known about it.
        data_files: hub file to read instead of a configuration.
        from_hub: makes a record of these fields from a hub row and the name of its configuration.
        origin: where to get the files, shown where there is no hub copy.
    """

    name: str
    hub_id: str
    fields: tuple[str, ...]
    licence: str
    splits: Mapping[str, SplitSpec] = field(default_factory=dict)
    configs: tuple[str, ...] = ()
    revision: str | None = None
    data_files: str | None = None
    from_hub: Callable[[Mapping[str, Any], str | None], dict[str, Any]] | None = None
    origin: str = ""


_MATH_SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)

_SPECS = (
    DatasetSpec(
        "gsm8k",
        "openai/gsm8k",
        ("question", "answer"),
        "MIT",
        {
            "train": SplitSpec(7473, "126e6307f9a2cc465b079a81e854c812a599065e600989c5e74e662496cd5cda"),
            "test": SplitSpec(1319, "b7785caf6596287b47b3a7a1c4ac7b11c5d481ea6aacd28ff546695559664380"),
        },
        configs=("main",),
        revision="740312add88f781978c0658806c59bc2815b9866",
    ),
    DatasetSpec(
        "math",
        "EleutherAI/hendrycks_math",
        ("problem", "level", "type", "solution"),
        "MIT; has been taken down once, never redistribute",
        {
            "train": SplitSpec(7500, "26e026e2e56632a6f0671992ed3233f6bf0a7ed8a41d107cf06921cb0d4c0b27"),
            "test": SplitSpec(5000, "56e0017540d6416bb5374a8a1e59f1ad22ae7e456907de06ebb8c8ef15445d58"),
        },
        configs=_MATH_SUBJECTS,
        revision="21a5633873b6a120296cce3e2df9d5550074f4a3",
    ),
    DatasetSpec(
        "math500",
        "HuggingFaceH4/MATH-500",
        ("problem", "solution", "answer", "subject", "level"),
        "MIT",
        {"test": SplitSpec(500, "5196fbac77449555afbd7b81bffc0cb85ec286ded33afbae28edebeed63282c7")},
        revision="6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
    ),
    DatasetSpec(
        "metamathqa",
        "meta-math/MetaMathQA",
        ("query", "response"),
        "MIT",
        {"train": SplitSpec(395000)},
        revision="aa4f34d3d2d3231299b5b03d9b3e5a20da45aa18",
    ),
    DatasetSpec(
        "humaneval",
        "openai/openai_humaneval",
        ("task_id", "prompt", "entry_point", "canonical_solution", "test"),
        "MIT",
        {"test": SplitSpec(164, "d901900e52ffbe373bb7a41ff2754e9d15516f14c7707f2510955040ea196ccd")},
        revision="7dce6050a7d6d172f3cc5c32aa97f52fa1a2e544",
    ),
    DatasetSpec(
        "mbpp",
        "google-research-datasets/mbpp",
        ("text", "code", "task_id", "test_setup_code", "test_list"),
        "CC BY 4.0",
        {
            "prompt": SplitSpec(10, "aa03d2857dd70f2470a67f38af1e98e353382bb78b4d0af7aa1f0382243ed799"),
            "test": SplitSpec(500, "438bed06dc2c75ae05a277d4690e46dbe54cca23412c413c3112b41052c5026c"),
            "validation": SplitSpec(90, "9d4f209d6a57f6a2162b8550f02567d18bd602e23e7913d4a75a138c98863e44"),
            "train": SplitSpec(374, "b17221f6fa0cbc7dd2b6d24f53478a1ec22e9249e5be2d2c61ad994cfe8bfe9c"),
        },
        configs=("full",),
        revision="4bb6404fdc6cacfda99d4ac4205087b89d32030c",
    ),
    # Chosen for `code` because its licence allows commercial use, it is in the instruction format of the finetuning
    # prompt, and its 20,022 pairs are few enough for a sweep. Its answers were written by a language model.
    DatasetSpec(
        "codealpaca",
        "sahil2801/CodeAlpaca-20k",
        ("instruction", "input", "output"),
        "CC BY 4.0",
        {"train": SplitSpec(20022)},
        revision="152bb5e9a29651266b018106053980070a0521a1",
    ),
    DatasetSpec(
        "tinystories",
        "roneneldan/TinyStories",
        ("text",),
        "CDLA-Sharing-1.0",
        {
            "train_head": SplitSpec(
                2316, "d11c55bca6dba8e12f02c5d1f68f95944502473b416e8f729301598b97e34b5f", "train", head=2316
            )
        },
        revision="f54c09fd23315a6f9c86f9dc80f725de7d8f9c64",
    ),
    DatasetSpec(
        "wikitext2",
        "Salesforce/wikitext",
        ("text",),
        "CC BY-SA",
        {
            "train": SplitSpec(36718),
            "validation": SplitSpec(3760, "77bb662ee27c1bd2fb4c3bcae0012533cfeea4a4850eeef4c6965af3a72a2cd2"),
            "test": SplitSpec(4358, "6bbe213ee8443fdedcd2f8abc1bd66fa49f63e93b5c2e6bb6ee3c64098a384ac"),
        },
        configs=("wikitext-2-raw-v1",),
        revision="b08601e04326c79dfdd32d625aee71d232d685c3",
    ),
    DatasetSpec(
        "c4",
        "allenai/c4",
        ("text",),
        "ODC-By",
        {
            "train_head": SplitSpec(
                1000, "de47f08062d54961c9cff2d5c7ec14ed4ddd4a14004d5b63aca33182855fd3fb", "train", head=1000
            )
        },
        revision="1588ec454efa1a09f29cd18ddd04fe05fc8653a2",
        data_files="en/c4-train.00000-of-01024.json.gz",
    ),
)
specs: dict[str, DatasetSpec] = {spec.name: spec for spec in _SPECS}
