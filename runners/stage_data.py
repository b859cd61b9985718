"""Which task data the stages of a plan read: for trainings, and for statistics."""

from __future__ import annotations

from ..evals.tasks.base import get_task
from ..foundation.errors import UserError
from ..methods.base import Compressor
from ..models.footprint import context_length
from .checks import check_rendering
from .config import MethodSpec
from .data_spec import DataSpec
from .graph import Plan
from .tokenizers import tokenizer_chat_rules, tokenizer_chats
from .training.data import calibration_length, example_length, survey_train_set
from .training.held_out import HELD_OUT, LEAST_EXAMPLES
from .training.settings import TrainSettings


class StageData:
    """Surveys training sets, each once, and says what of them a stage reads.

    Args:
        plan: whose data they are; surveys are noted in its ``training_sets``.

    Attributes:
        context: tokens that the model takes.
        folder: of local datasets, None for the hub.
        train_set: name of the training set, None for the task's default.
        chat: whether instructions are rendered with the tokenizer's chat template.
        chat_rules: version of the rules by which they are.
    """

    def __init__(self, plan: Plan) -> None:
        training, data = plan.config.training, plan.config.execution.data
        self.plan, self.task = plan, plan.config.task
        self.context = context_length(plan.skeleton.config)
        self.folder = data.expanduser().resolve() if data else None
        self.train_set = plan.recipe.train_set(self.task, training.train_set)
        asked = training.chat_template == "auto" and plan.at_hand.tokenizer
        self.chat = asked and tokenizer_chats(plan.source)
        self.chat_rules = tokenizer_chat_rules(plan.source) if self.chat else 1
        self.held_out = HELD_OUT if training.tune else 0.0
        self._specs: dict[str, DataSpec] = {}

    def check(self) -> None:
        """Read the task's training set.

        Raises:
            UserError: it cannot be read, or is too small to hold some of it out.
        """
        self._spec(self.task)
        examples = self.plan.training_sets[self.task].examples
        if self.held_out and examples < LEAST_EXAMPLES:
            raise UserError(
                f"--tune holds {HELD_OUT:.0%} of the training examples out to choose by, and {examples} are too few "
                f"for that; leave --tune out, or train on {LEAST_EXAMPLES} or more"
            )

    def for_training(self, settings: TrainSettings) -> DataSpec:
        """Return what a training reads, in a tuned sweep without what is held out."""
        changes = {"max_length": settings.max_length, "held_out": self.held_out}
        return self._spec(self.task).model_copy(update=changes)

    def for_statistics(self, spec: MethodSpec, method: Compressor, training: TrainSettings) -> DataSpec:
        """Return what a method makes its statistics of.

        Args:
            spec: as the user wrote it.
            method: made of it.
            training: the first finetuning.

        Raises:
            UserError: the user asks for examples that are longer than the model's context.
        """
        needs = method.requirements
        task = needs.calibration_task or self.task
        if (spec.options.get("length") or 0) > self.context:
            raise UserError(
                f"'{spec.shown}' asks for calibration examples of {needs.calibration_length} tokens, more than "
                f"{self.plan.source.name} takes; write length={self.context} or less, or leave it out for "
                f"{calibration_length(task, None, self.context)}"
            )
        asked = needs.calibration_length or training.max_length
        length = calibration_length(task, asked, self.context)
        # None where it is what a training would read: keys of stages stay what they were before this was chosen here.
        own = asked is None and length == example_length(task, None, self.context)
        return self._spec(task).model_copy(update={"max_length": None if own else asked or length})

    def _spec(self, task: str) -> DataSpec:
        if task not in self._specs:
            source = self.train_set if task == self.task else None
            at_hand = self.plan.at_hand.data
            chat = self.chat and task == self.task
            survey = survey_train_set(task, source, self.folder, at_hand, chat, self.chat_rules)
            if self.plan.at_hand.tokenizer:
                get_task(task).check_chat(self.chat, survey.sample)
                if survey.identity.chat:
                    check_rendering(self.plan.source, survey)
            self.plan.training_sets[task] = survey
            self._specs[task] = survey.identity
        return self._specs[task]
