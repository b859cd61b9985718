"""From a model's name or a cell of a run to the tokens behind its bases, and to what a compression did to them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers
from safetensors.torch import load_file

from ...foundation.errors import UserError, unknown
from ...methods.base import create_method
from ...methods.fitted import Fitted
from ...methods.library.bs import BasisSelection
from ...methods.selection import GROWTH, Fate, trained_fates, truncated_fates
from ...models.loading import load_model, load_tokenizer
from ...models.presets import PRESETS, resolve_model
from ...models.residual import NamedMatrix, find_matrix, matrix_of, named_matrices
from ...models.token_text import token_texts
from ...runners.specs import ModelLocation
from ...runners.stage_records import CompressRecord
from ...runners.store.folders import verify_around
from ...runners.store.report_file import BASES_FILE, read_report
from ..cells import FoundCell, find_cell, is_cell
from .bases import Token, TokenBasis, TokenView
from .changes import ChangeView, frame_of
from .meaning import Ends, Lens, Side, find_bases, read_tokens, readable_side

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Reading:
    """How vectors become tokens: tokens at each end, the lens, and whether norms' weights are folded in."""

    top: int = 10
    lens: Lens | None = None
    fold_norm: bool = True


def inspect_bases(
    name: str,
    matrix: str,
    layer: int | None,
    head: int | None = None,
    side: Side | None = None,
    count: int = 10,
    reading: Reading = Reading(),
    revision: str | None = None,
    seed: int | None = None,
    storage: str | None = None,
) -> TokenView:
    """Return the strongest bases of one matrix of a model as tokens.

    Args:
        name: preset, folder (dense or factorised), hub id, or a cell of a run.
        matrix, layer, head, side: see `results.inspection.meaning.find_bases`.
        count: bases.
        reading: see `Reading`.
        revision: of a hub model.
        seed: which of a cell's.
        storage: URL that a cell's missing files are brought from.
    """
    transformers.utils.logging.disable_progress_bar()
    location, revision = _locate(name, revision, seed, storage)
    model, tokenizer = load_model(location, revision, "auto"), load_tokenizer(location, revision)
    bases = find_bases(model, matrix, layer, head, side)
    vectors, size = bases.vectors[:count], len(tokenizer)
    ends = read_tokens(model, bases.linear, bases.side, vectors, reading.top, size, reading.lens, reading.fold_norm)
    total = float(bases.values.sum())
    rows = [
        _row(tokenizer, bases.linear, bases.matrix, bases.head, bases.side, i, s, s / total, end)
        for i, (s, end) in enumerate(zip(bases.values.tolist(), ends, strict=False))
    ]
    position = [] if layer is None else [f"layer {layer}"]
    position += [bases.matrix] + ([] if head is None else [f"head {head}"])
    title = f"{name} · {', '.join(position)}: the strongest {len(rows)} of {len(bases.values)} bases"
    return TokenView(title, (_capital(bases.note), _lens_note(bases.side, reading), _SIGN), tuple(rows))


_SIGN = (
    "A singular vector's sign is arbitrary: + is the end with the token of the largest absolute score. Layers, heads "
    "and bases are counted from 0."
)


def _lens_note(side: str, reading: Reading) -> str:
    output = (reading.lens or ("output" if side == "left" else "input")) == "output"
    folded = "norm weights folded in" if reading.fold_norm else "norm weights left out"
    return f"Tokens by the {'output head' if output else 'input embedding'}, {folded}."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def _locate(name: str, revision: str | None, seed: int | None, storage: str | None) -> tuple[str, str]:
    if is_cell(name) and not Path(name).is_dir():
        return str(find_cell(name, seed=seed, any_benchmark=True, storage=storage).checkpoint()), ""
    if name not in PRESETS and (Path(name) / "config.json").is_file():
        verify_around(Path(name))
        return name, ""  # no table says which weights these were, so they need not be hashed
    source = resolve_model(name, revision)
    return source.location, source.revision


def _row(
    tokenizer: Any,
    linear: NamedMatrix,
    matrix: str,
    head: int | None,
    side: str,
    basis: int,
    value: float,
    share: float,
    ends: Ends,
    state: str = "",
) -> TokenBasis:
    def tokens(end: tuple[tuple[int, float], ...]) -> tuple[Token, ...]:
        texts = token_texts(tokenizer, [i for i, _ in end])
        return tuple(Token(i, text, score) for (i, score), text in zip(end, texts, strict=True))

    plus, minus = tokens(ends.positive), tokens(ends.negative)
    return TokenBasis(linear.module, linear.layer, matrix, head, side, basis, value, share, plus, minus, state)


def inspect_changes(
    name: str,
    layer: int | None = None,
    matrix: str | None = None,
    count: int = 5,
    reading: Reading = Reading(),
    seed: int | None = None,
    storage: str | None = None,
) -> ChangeView:
    """Return what a cell's compression did to the bases of its model, before the recovery.

    Args:
        name: ``RUN:LABEL@RATIO``.
        layer, matrix: only these.
        count: how many bases that grew most, and how many of the largest that died, are read as tokens.
        reading: see `Reading`.
        seed: which of a cell's.
        storage: URL that the cell's missing files are brought from.

    Raises:
        UserError: no such cell, one that is not compressed, or one whose method leaves no account of its bases.
    """
    transformers.utils.logging.disable_progress_bar()
    cell = find_cell(name, seed=seed, any_benchmark=True, storage=storage)
    stage = _compress_stage(cell)
    fates = _fates(stage)
    model = load_model(stage.base, stage.revision, "auto")
    chosen = _chosen(model, fates, layer, matrix)
    trained = any(fates[entry.module].after is not None for entry in chosen)
    frame = frame_of([line for entry in chosen for line in _lines(entry, fates[entry.module])])
    tokens = _tokens(model, load_tokenizer(stage.base, stage.revision), stage, frame, count, reading) if count else ()
    parts = ([] if layer is None else [f"layer {layer}"]) + ([matrix] if matrix else [])
    title = ", ".join([f"{name}: what became of the bases", *parts])
    short = " ".join([f"{cell.record.label}@{cell.record.ratio_target:g}", *parts])
    return ChangeView(title, short, _change_notes(trained, bool(tokens), reading), frame, trained, tokens)


def _change_notes(trained: bool, tokens: bool, reading: Reading) -> tuple[str, ...]:
    if trained:
        first = (
            "Compression stage alone, before the recovery. s: singular value (before: of the finetuned model); grew: "
            f"kept with s more than {100 * GROWTH:g} % larger; Σs after: kept bases and new vectors, in % of Σs before."
        )
    else:
        first = "This method truncates and trains no bases: the first r by its own spectrum are kept, the others died."
    readable = (
        "Tokens: left vectors of o and down by the output head, right vectors of the others by the input embedding"
        f"{'' if reading.lens is None else f' (here all by the {reading.lens} lens)'}; the sign is arbitrary."
    )
    return (first, readable) if tokens else (first,)


@dataclass(frozen=True)
class _CompressStage:
    """A compress stage at one ratio: its record, folders of ratio and fit, and the model that it compressed."""

    record: CompressRecord
    ratio: Path
    fit: Path
    base: str
    revision: str


def _compress_stage(cell: FoundCell) -> _CompressStage:
    """Follow a cell's inputs back to its compression."""
    stages = cell.stage.parent
    store, key = cell.store(), cell.stage.name
    while True:
        key, _, inside = store.record(key).spec.inputs.model.partition("/")
        if key.startswith("compress-"):
            break
        if not key.startswith("recover-"):
            raise UserError(
                f"'{cell.record.label}@{cell.record.ratio_target:g}' is not compressed, so no basis changed; "
                "name a compressed cell, such as runs/tiny-toy-math:bs@3"
            )
    record = store.record(key)
    assert isinstance(record, CompressRecord)
    inputs = record.spec.inputs
    for needed in (key, inputs.fit, inputs.model.partition("/")[0]):
        if store.path(needed).is_dir():
            store.whole(needed)
            store.verify(needed)
    fit, base = stages / inputs.fit, stages / inputs.model
    model = ModelLocation(location=str(base)) if base.is_dir() else record.execution.model
    if not fit.is_dir():
        raise UserError(f"the fit {fit} of {key} is gone; run the sweep again to make it")
    folder = stages / key / Path(inside).parts[0]
    return _CompressStage(record, folder, fit, model.location, model.revision)


def _fates(stage: _CompressStage) -> dict[str, Fate]:
    file, spec = stage.ratio / BASES_FILE, stage.record.spec
    if file.is_file():
        return trained_fates(load_file(file))
    method = create_method(spec.method, spec.options)
    if isinstance(method, BasisSelection):
        raise UserError(
            f"{stage.ratio.parent} was made before compress stages kept what became of each basis; delete that folder "
            "and run the sweep again"
        )
    if method.requirements.trains:
        raise UserError(
            f"the method '{spec.method}' trains while it compresses and keeps no account of its bases; inspect "
            "bs, bsi or a method that truncates, such as svd"
        )
    report = read_report(stage.ratio)
    return truncated_fates(Fitted.load(stage.fit), report.ranks, report.dense)


def _chosen(model: Any, fates: dict[str, Fate], layer: int | None, matrix: str | None) -> list[NamedMatrix]:
    """Return the matrices with an account that are asked for, in the model's order."""
    every = [entry for entry in named_matrices(model) if entry.module in fates]
    if layer is not None and matrix is not None:
        find_matrix(model, matrix, layer)  # refuses what is not there
    layers = sorted({entry.layer for entry in every if entry.layer is not None})
    if layer is not None and layer not in layers:
        raise UserError(f"there is no layer {layer}; layers are counted from 0, so --layer takes 0 to {layers[-1]}")
    chosen = [
        entry
        for entry in every
        if layer in (None, entry.layer) and (matrix in (None, entry.role) or f".{entry.module}".endswith(f".{matrix}"))
    ]
    if not chosen:
        raise unknown("matrix", str(matrix), {entry.shown for entry in every}, " of those that were compressed")
    return chosen


def _lines(entry: NamedMatrix, fate: Fate) -> list[tuple[Any, ...]]:
    base = (entry.module, -1 if entry.layer is None else entry.layer, entry.shown)
    after = [math.nan] * len(fate.before) if fate.after is None else fate.after.tolist()
    old = zip(fate.before.tolist(), after, fate.states, strict=True)
    lines = [(*base, i, before, now, state) for i, (before, now, state) in enumerate(old)]
    return lines + [(*base, i, math.nan, now, "new") for i, now in enumerate(fate.new.tolist())]


def _tokens(
    model: Any, tokenizer: Any, stage: _CompressStage, frame: pd.DataFrame, count: int, reading: Reading
) -> tuple[TokenBasis, ...]:
    """Read the bases whose s grew most, then the largest that died; of equal ones those that come first."""
    fitted, sides = Fitted.load(stage.fit), {}
    for module in dict.fromkeys(frame.module):
        sides[module] = readable_side(model, matrix_of(module))
    readable = frame[frame.module.map(sides).notna()]
    grown = readable[readable.state == "grew"].assign(by=lambda rows: rows.after - rows.before)
    died = readable[readable.state == "died"].assign(by=lambda rows: rows.before)
    died = died[died.basis < died.module.map(fitted.parts)]  # a fit need not keep what no ratio reads
    totals = frame.groupby("module").before.sum()
    token_rows = []
    for rows in (grown, died):
        for row in rows.sort_values("by", ascending=False, kind="stable").head(count).to_dict("records"):
            entry, basis, before = matrix_of(row["module"]), int(row["basis"]), float(row["before"])
            side = sides[entry.module]
            assert side is not None
            factors = fitted.factors(entry.module)
            vector = (factors.left[:, basis] if side == "left" else factors.right[basis]).double()
            unit = (vector / vector.norm().clamp_min(1e-300))[None]
            size = len(tokenizer)
            ends = read_tokens(model, entry, side, unit, reading.top, size, reading.lens, reading.fold_norm)[0]
            share = before / float(totals[entry.module])
            state = f"grew to {row['after']:.4g}" if row["state"] == "grew" else "died"
            token_rows.append(_row(tokenizer, entry, entry.shown, None, side, basis, before, share, ends, state))
    return tuple(token_rows)
