"""The curves of one training: transformers' callbacks, kept from ending it when a tracker fails."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

import transformers

from .names import Tracking
from .trackers import Tracker, trackers

MOST_POINTS = 500
"""About so many points a curve has at most."""


class TrackedTraining(transformers.TrainerCallback):
    """Passes the events of a training on to one tracker's callback until that fails once, which it says.

    Args:
        tracker: whose run is opened when the training begins.
        title: of the run.
    """

    def __init__(self, tracker: Tracker, title: str) -> None:
        self.tracker, self.title = tracker, title
        self.inner: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        guarded(self.tracker, self.title, self._open)
        self._pass_on("on_train_begin", args, state, control, **kwargs)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._pass_on("on_log", args, state, control, **kwargs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._pass_on("on_train_end", args, state, control, **kwargs)

    def close(self) -> None:
        """End the run, also of a training that failed; does nothing where the tracker has failed."""
        if self.inner is not None:
            guarded(self.tracker, self.title, self.tracker.close_training)
        self.inner = None

    def _open(self) -> None:
        self.inner = self.tracker.open_training(self.title)

    def _pass_on(self, event: str, *arguments: Any, **named: Any) -> None:
        if self.inner is None:
            return
        inner = self.inner
        if not guarded(self.tracker, self.title, lambda: getattr(inner, event)(*arguments, **named)):
            self.inner = None


def tracked(tracking: Tracking | None, title: str) -> list[TrackedTraining]:
    """Return a callback for each tracker of a sweep."""
    return [TrackedTraining(tracker, title) for tracker in trackers(tracking)]


def guarded(tracker: Tracker, title: str, action: Callable[[], Any]) -> bool:
    """Do something with a tracker; where it fails say so on standard error and return False.

    Of what its library says only the kind of the failure is repeated, for addresses may hold passwords.
    """
    try:
        with redirect_stdout(io.StringIO()):  # where they advertise their dashboards
            action()
        return True
    except Exception as error:
        print(
            f"note: {tracker.name} failed ({type(error).__name__}) and gets nothing more of '{title}'; the results "
            "do not depend on it",
            file=sys.stderr,
        )
        return False
