"""What transformers imports of scikit-learn and scipy is imported when it is called."""

import sys

import numpy
import pytest
from commands import OF_A_SWEEP

from lowrank_bench.foundation import fork_server


def _print_loaded() -> None:
    import transformers.generation.candidate_generator as generator

    print(sorted({"sklearn", "scipy.stats", "transformers.generation.utils"} & set(sys.modules)))
    generator.roc_curve([0, 1], [0.1, 0.9])
    print("sklearn.metrics" in sys.modules)


def test_a_process_that_evaluates_does_not_import_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fork_server, "MODULES", OF_A_SWEEP)
    code, printed = fork_server.run_apart(_print_loaded, threads=3)  # a server of its own, which starts now
    assert (code, printed.splitlines()) == (0, ["['transformers.generation.utils']", "True"])


@pytest.mark.filterwarnings("ignore:This metric will be removed")
def test_the_functions_and_what_asks_for_them_are_the_same() -> None:
    from sklearn import metrics as sklearn_metrics  # not above: the process that is asked imports this module
    from transformers.data import metrics
    from transformers.generation import candidate_generator
    from transformers.utils import is_sklearn_available

    labels, scores = [0, 1, 1, 0], [0.1, 0.4, 0.9, 0.6]
    curve, expected = candidate_generator.roc_curve(labels, scores), sklearn_metrics.roc_curve(labels, scores)
    assert [part.tolist() for part in curve] == [part.tolist() for part in expected]
    assert metrics.f1_score(labels, [0, 1, 0, 0]) == sklearn_metrics.f1_score(labels, [0, 1, 0, 0])
    assert metrics.matthews_corrcoef(labels, [0, 1, 0, 0]) == sklearn_metrics.matthews_corrcoef(labels, [0, 1, 0, 0])
    assert metrics.pearson_and_spearman(numpy.array(scores), scores)["pearson"] == pytest.approx(1)
    assert is_sklearn_available()
    assert candidate_generator.is_sklearn_available is is_sklearn_available
