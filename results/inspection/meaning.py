"""What the bases of a matrix mean: its singular vectors in the residual stream, read as tokens.

Basis Selection (arXiv 2405.15877) motivates itself with a table of the tokens behind the left singular vectors of one
head's matrix; the method is that of Millidge and Black, "The Singular Value Decompositions of Transformer Weight
Matrices are Highly Interpretable" (2022). Here W is (out, in) and y = W x, so left singular vectors are directions that
a matrix writes and right ones directions that it reads. Only directions of the residual stream can be read as tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ...foundation.errors import UserError, unknown
from ...methods.linalg import merge
from ...models.embedding import LowRankEmbedding
from ...models.matrices import head_name
from ...models.residual import (
    READS,
    WRITES,
    Heads,
    NamedMatrix,
    final_norm,
    find_matrix,
    input_norm,
    matrix_of,
    through_norm,
    weight,
)

Side = Literal["left", "right"]
Lens = Literal["output", "input"]
_SMALLEST = 1e-10
"""Singular values below this share of the largest are rounding, and their vectors are arbitrary."""


@dataclass(frozen=True)
class Bases:
    """The singular vectors of one matrix on the side that lies in the residual stream.

    Attributes:
        linear: the matrix.
        matrix: its short name as asked for: ``ov`` is o·v of one head.
        head: counted from 0, or None for the whole matrix.
        side: ``left`` (written) or ``right`` (read).
        values: (k,) singular values, descending.
        vectors: (k, d) in float64, one unit vector a row; d is the stream's width, or the vocabulary's for the left
            vectors of the output head.
        note: one sentence: what these vectors are.
    """

    linear: NamedMatrix
    matrix: str
    head: int | None
    side: Side
    values: Tensor
    vectors: Tensor
    note: str


def find_bases(model: Any, matrix: str, layer: int | None, head: int | None = None, side: Side | None = None) -> Bases:
    """Decompose a matrix, or one head of it, and return its vectors in the residual stream.

    Args:
        model: a transformers model, dense or factorised.
        matrix: q, k, v, o, gate, up, down, ``ov``, or a module's name (see `models.residual.find_matrix`).
        layer: counted from 0; None for a matrix outside the layers, such as ``lm_head``.
        head: rows of one head in q, k, v; its columns in o; k and v count key/value heads.
        side: None takes left where it lies in the residual stream, else right.

    Raises:
        UserError: no such matrix, layer or head, or a side that is not in the residual stream.
    """
    circuit = matrix == "ov"
    linear = find_matrix(model, "v" if circuit else matrix, layer)
    role = "ov" if circuit else linear.role
    if circuit and head is None:
        raise UserError("ov is o times v of one head; add --head, such as --head 0")
    if role == "v" and head is not None and side != "right":
        return _through_o(model, linear, head)
    side = _side(model, linear, role, side)
    if circuit:
        assert head is not None
        return _circuit(model, linear, head, side, "ov")
    b, a = weight(model, linear)
    if head is not None:
        part = Heads.of(model).rows(role, head)
        b, a = (b, a[:, part]) if role == "o" else (b[part], a)
    return _bases(linear, linear.shown, head, side, b, a, _note(model, linear, role, side))


def readable_side(model: Any, linear: NamedMatrix) -> Side | None:
    """Return the side on which a whole matrix can be read as tokens, or None."""
    try:
        return _side(model, linear, linear.role, None)
    except UserError:
        return None


def _side(model: Any, linear: NamedMatrix, role: str, side: Side | None) -> Side:
    """Return the side that is asked for or the default, after checking that it lies in the residual stream."""
    if role == "ov" or linear.module == head_name(model):
        return side or ("left" if role == "ov" else "right")
    reads, writes = role in READS or "query_key_value" in linear.module, role in WRITES
    if not reads and not writes:
        raise UserError(
            f"it is not known whether '{linear.module}' reads or writes the residual stream; inspect q, k, v, o, ov, "
            "gate, up or down of a layer, or the output head"
        )
    allowed: Side = "right" if reads else "left"
    if side not in (None, allowed):
        space = "the space of its outputs" if reads else "the space of its inputs"
        hint = "; name one head of v with --head to see what it writes" if role == "v" else ""
        raise UserError(
            f"the {side} singular vectors of {linear.shown} lie in {space}, not in the residual stream, so they are no "
            f"tokens; use --side {allowed}{hint}"
        )
    return allowed


def _through_o(model: Any, linear: NamedMatrix, head: int) -> Bases:
    heads = Heads.of(model)
    heads.rows("v", head)
    served = heads.serves(head)
    if len(served) > 1:
        raise UserError(
            f"the left singular vectors of v lie in the head's own space, and the query heads {served[0]} to "
            f"{served[-1]} use key/value head {head}, each with its own columns of o; add --side right, or name one of "
            f"them as --matrix ov --head {served[0]}"
        )
    return _circuit(model, linear, served[0], "left", "v")


def _circuit(model: Any, linear: NamedMatrix, head: int, side: Side, name: str) -> Bases:
    """Decompose W_O[:, head] W_V[head's key/value head, :], (d, d) of rank at most the head's width."""
    assert linear.layer is not None
    heads, layer = Heads.of(model), linear.layer
    columns = heads.rows("o", head)
    # Consecutive query heads share a key/value head.
    rows = heads.rows("v", head * heads.key_value // heads.query)
    b_o, a_o = weight(model, find_matrix(model, "o", layer))
    b_v, a_v = weight(model, linear)
    verb = "writes to" if side == "left" else "reads from"
    note = f"{side} singular vectors of o·v of head {head}: what the head {verb} the residual stream"
    return _bases(linear, name, head, side, b_o @ a_o[:, columns], b_v[rows] @ a_v, note)


def _note(model: Any, linear: NamedMatrix, role: str, side: Side) -> str:
    if linear.module == head_name(model):
        meaning = "groups of tokens that are scored together" if side == "left" else "what the head reads"
    else:
        meaning = (
            "what it reads from the residual stream" if side == "right" else "what it writes to the residual stream"
        )
    return f"{side} singular vectors of {role or linear.module}: {meaning}"


def _bases(
    linear: NamedMatrix, name: str, head: int | None, side: Side, left: Tensor, right: Tensor, note: str
) -> Bases:
    u, s, vt = merge(left, right, min(left.shape[0], right.shape[1], left.shape[1]))
    real = s > _SMALLEST * s[:1].clamp_min(1e-300)
    return Bases(linear, name, head, side, s[real], (u.T if side == "left" else vt)[real], note)


@dataclass(frozen=True)
class Ends:
    """The tokens at both ends of one basis, as (token id, score) from the end's strongest; see `read_tokens`."""

    positive: tuple[tuple[int, float], ...]
    negative: tuple[tuple[int, float], ...]


def read_tokens(
    model: Any,
    linear: NamedMatrix,
    side: Side,
    vectors: Tensor,
    top: int,
    vocabulary: int,
    lens: Lens | None = None,
    fold_norm: bool = True,
) -> list[Ends]:
    """De-embed vectors of the residual stream.

    A vector that is written scores a token by what it adds to the token's logit, up to the positive factor of the final
    norm's division. A vector that is read scores a token by how strongly the matrix answers to a stream that points to
    it. The sign of a singular vector means nothing, so both ends are returned; the positive end is the one that holds
    the token with the largest absolute score, of equal ones that with the smaller id.

    Args:
        model: what the vectors belong to.
        linear, side: where they come from, see `Bases`.
        vectors: (k, d).
        top: tokens at each end.
        vocabulary: token ids from here on are padding and left out.
        lens: ``output`` takes the output head's rows as the tokens' directions, ``input`` the embedding's; None is
            output for written vectors and input for read ones.
        fold_norm: take the weights of the norms on the way into account: the final norm's behind written vectors, the
            layer's own before read ones.
    """
    scores = _scores(model, linear, side, vectors, lens, fold_norm)[:, :vocabulary]
    largest = scores.abs().argmax(1, keepdim=True)
    scores = scores * scores.gather(1, largest).sign()
    return [Ends(_strongest(row, top), tuple((i, -s) for i, s in _strongest(-row, top))) for row in scores]


def _embedding(model: Any) -> tuple[Tensor, Tensor]:
    """Return the token embedding as B (V, r) and A (r, d) in float64; of a dense one A = 1."""
    embedding = model.get_input_embeddings()
    if isinstance(embedding, LowRankEmbedding):
        return embedding.lr_b.detach().double(), embedding.lr_a.detach().double()
    rows = embedding.weight.detach().double()
    return rows, torch.eye(rows.shape[1], dtype=rows.dtype)


def _strongest(scores: Tensor, top: int) -> tuple[tuple[int, float], ...]:
    order = scores.argsort(descending=True, stable=True)[:top].tolist()
    return tuple((i, float(scores[i])) for i in order)


def _scores(model: Any, linear: NamedMatrix, side: Side, vectors: Tensor, lens: Lens | None, fold_norm: bool) -> Tensor:
    """Return (k, vocabulary rows) in float64."""
    name = head_name(model)
    # They lie in the space of the logits and have a score for each token already.
    if side == "left" and linear.module == name:
        return vectors
    if lens not in (None, "output", "input"):
        raise unknown("lens", str(lens), ["output", "input"])
    output = (lens or ("output" if side == "left" else "input")) == "output"
    if fold_norm:
        own, last = input_norm(model, linear), final_norm(model)
        if side == "right" and own is not None:
            vectors = through_norm(own, vectors, reading=True)
        if output and last is not None:
            vectors = through_norm(last, vectors)
    if output:
        if name is None:
            raise UserError("the model has no output head to read tokens with; use --lens input")
        b, a = weight(model, matrix_of(name))
    else:
        b, a = _embedding(model)
    if a.shape[1] != vectors.shape[1]:
        raise UserError(
            f"the model's token vectors are {a.shape[1]} wide and its residual stream {vectors.shape[1]}, so tokens "
            "are no directions of the stream; inspect a model without a projection between them"
        )
    return vectors @ a.T @ b.T
