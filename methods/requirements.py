"""What a method needs, declared once a method; tables, docs, plans and the contract suite read it. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Requirements:
    """What a method needs of the data, the model and the machine, and where it comes from.

    A class declares it for its default options, as a literal: ``requires = Requirements(statistics=True)``. Options
    may change it; `Compressor.requirements` says what an instance needs.

    Attributes:
        statistics: `fit` reads task data for its statistics.
        gradients: those statistics are made of gradients.
        measures: `fit` reads task data to measure the loss of the model with matrices cut.
        searches: `compress` asks the model on task data without training it.
        trains: `compress` trains the model, with a `Trainer`.
        trains_sharded: the training copes with a trainer that leaves a share of every parameter in each process.
        shares: which matrices share a factor, in words; empty where none do.
        affine: factorised layers get a bias that restores the mean output.
        layer_by_layer: weights are read by `Group.weight` alone and statistics collected by `calibration.collection`,
            so that a model whose weights stay on disk (`models.streamed`) serves as well as one in memory.
        policy: rank policy.
        calibration_task: task whose training data are read, empty for the run's own.
        calibration_length: longest example in tokens that is read, None for the task's own.
        ranks: how ranks are chosen, in words.
        paper: where it was published.
        status: how far it is checked, in one word of docs/methods/README.md.
        note: the same in a sentence.
    """

    statistics: bool = False
    gradients: bool = False
    measures: bool = False
    searches: bool = False
    trains: bool = False
    trains_sharded: bool = False
    shares: str = ""
    affine: bool = False
    layer_by_layer: bool = True
    policy: str = "uniform"
    calibration_task: str = ""
    calibration_length: int | None = None
    ranks: str = "uniform"
    paper: str = ""
    status: str = ""
    note: str = ""

    @property
    def data_in_fit(self) -> bool:
        """Whether `fit` reads task data."""
        return self.statistics or self.measures

    @property
    def data(self) -> bool:
        """Whether the method reads task data at all."""
        return self.data_in_fit or self.searches or self.trains

    @property
    def fit_layer_by_layer(self) -> bool:
        """Whether `fit` also takes a model whose weights stay on disk: it measures nothing on the whole model."""
        return self.layer_by_layer and not self.measures

    @property
    def compress_layer_by_layer(self) -> bool:
        """Whether `compress` also takes a model whose weights stay on disk: it never runs the whole model."""
        return self.layer_by_layer and not self.searches and not self.trains
