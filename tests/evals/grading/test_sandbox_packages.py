"""What programs can import in a sandbox, how numpy's results are compared, and what is said of a missing package."""

from importlib.metadata import version

import numpy as np
import pytest

from lowrank_bench.evals.base import EvalSettings
from lowrank_bench.evals.benchmarks.toy_code import ToyCode
from lowrank_bench.evals.grading.sandbox import packages
from lowrank_bench.evals.grading.sandbox.programs import Job, run_one, run_programs
from lowrank_bench.evals.grading.sandbox.sandboxed_process import ISOLATING
from lowrank_bench.evals.grading.sandbox.wire import WireError, decode, encode

LEVELS = (*ISOLATING, "rlimits")


def run(program, test, names=("f",), level="bwrap", together=False):
    return run_one(Job(program, test, names, together=together), level, timeout=60)


@pytest.mark.parametrize("level", LEVELS)
def test_offered_packages_can_be_imported_and_nothing_else(level):
    program = (
        "import numpy as np, os, pandas, regex, sympy, sys\n"
        "def f(x): return np.linalg.inv(np.eye(50)).sum() - 50 + x\n"
        "def g(): return [sympy.factorint(12), len(regex.findall('a', 'aa')), int(pandas.Series([1, 2]).sum())]\n"
        "def h(): return sorted(os.listdir(next(p for p in sys.path if 'packages' in p.split('/')[-1])))\n"
    )
    test = (
        "assert f(1) == 1\nassert g() == [{2: 2, 3: 1}, 2, 3]\nseen = h()\n"
        "assert 'numpy' in seen and not {'torch', 'pip', 'transformers'} & set(seen) and len(seen) < 15, seen"
    )
    verdict = run(program, test, ("f", "g", "h"), level)
    assert verdict.passed, verdict


@pytest.mark.parametrize("level", ISOLATING)
def test_offered_packages_are_read_only(level):
    program = (
        "import numpy, os\ndef f():\n    folder = os.path.dirname(numpy.__file__)\n    failed = 0\n"
        "    for path in (folder + '/new.py', folder + '/__init__.py', '/packages/new.py'):\n"
        "        try: open(path, 'a').close()\n        except OSError: failed += 1\n    return failed"
    )
    assert run(program, "assert f() == 3", level=level).passed


NUMPY = "import numpy as np\ndef f(x): return {}"


@pytest.mark.parametrize(
    ("value", "test", "kind"),
    [
        ("np.int64(2)", "assert f(1) == 2 and f(1) + 1 == 3", "passed"),
        ("np.float64(0.1) + np.float64(0.2)", "assert f(1) == 0.1 + 0.2 and isinstance(f(1), float)", "passed"),
        ("np.float32(0.1)", "assert f(1) == 0.1 and float(f(1)) == 0.1", "wrong"),
        ("list(np.array([x, 2]))", "assert f(1) == [1, 2]", "passed"),
        ("np.bool_(True)", "assert f(1)", "passed"),
        ("np.bool_(True)", "assert f(1) is True", "wrong"),
        ("np.array([x + 1])", "assert f(1) == 2", "passed"),
        ("np.array([x, 2])", "assert f(1) == [1, 2]", "exception"),
        ("np.array([x, 2])", "assert (f(1) == [1, 2]).all() and f(1).shape == (2,)", "passed"),
        ("{np.int64(x): np.array(['a', 'b'])}", "assert list(f(1)[1]) == ['a', 'b']", "passed"),
        ("np.array([object()])", "assert f(1) is not None and f(1) == f(1)", "wrong"),
    ],
)
def test_results_of_numpy_compare_as_in_one_process(value, test, kind):
    verdict = run(NUMPY.format(value), test)
    assert verdict.kind == kind, verdict
    if "object" not in value:
        space = {}
        try:
            exec(f"{NUMPY.format(value)}\n{test}", space)
            alone = "passed"
        except AssertionError:
            alone = "wrong"
        except ValueError:
            alone = "exception"
        assert alone == kind


@pytest.mark.parametrize("together", [False, True])
def test_numpy_in_arguments_and_in_the_programs_own_process(together):
    test = "import numpy as np\na = np.array([3, 1, 2])\nf(a)\nassert a.tolist() == [1, 2, 3]"
    assert run("import numpy\ndef f(a): a.sort()", test, together=together).passed


def test_numpys_values_come_back_as_they_were():
    scalars = [np.int8(-3), np.uint64(2**63), np.float16(0.1), np.longdouble(1) / 3, np.complex64(1j), np.bool_(False)]
    scalars += [np.str_("é"), np.str_(""), np.bytes_(b"x"), np.datetime64("2020-01-02"), np.timedelta64(5, "s")]
    for value, back in zip(scalars, decode(encode(scalars)), strict=True):
        assert (type(back), back.dtype, back) == (type(value), value.dtype, value)
    for array in (np.arange(6).reshape(2, 3).T, np.zeros((0, 3)), np.array(5.5), np.array(["ab", "c"]), np.eye(2) > 0):
        back = decode(encode(array))
        assert type(back) is np.ndarray
        assert (back.dtype, back.shape, back.flags.writeable) == (array.dtype, array.shape, True)
        assert np.array_equal(back, array)
    assert np.isnan(decode(encode(np.float64("nan"))))


def test_subclasses_of_arrays_lose_their_behaviour_and_objects_are_opaque():
    class Liar(np.ndarray):
        def tobytes(self, *_):
            return b"\0" * 16

        def __eq__(self, other):
            return True

    back = decode(encode(np.array([1, 2]).view(Liar)))
    assert type(back) is np.ndarray
    assert back.tolist() == [1, 2]
    for value in (np.array([1, None]), np.zeros(2, [("a", "i4")])):
        assert type(decode(encode(value))).__name__ == "Opaque"


@pytest.mark.parametrize("code", ["|O", "i4,O", "V8", "<i8", "S0", "x"])
def test_forged_arrays_are_a_wire_error(code):
    data = encode(np.array([1, 2], "<i4")).replace(b"<i4", code.encode().ljust(3)[:3])
    with pytest.raises(WireError):
        decode(data if len(code) < 4 else data.replace(b"\x03", bytes([len(code)])))


def test_values_larger_than_a_message_are_refused_before_they_are_copied():
    with pytest.raises(WireError, match="MiB"):
        encode(np.broadcast_to(np.int8(1), (1 << 50,)))


@pytest.mark.parametrize(
    ("program", "package"),
    [
        ("import scipy.stats\ndef f(x): return 2", "scipy"),
        ("def f(x):\n    from torch import nn\n    return 2", "torch"),
        ("import no_such_package_1\ndef f(x): return 2", "no_such_package_1"),
    ],
)
def test_a_missing_package_is_a_kind_of_its_own_and_named(program, package):
    for level in LEVELS:
        verdict = run(program, "assert f(1) == 2", level=level)
        assert (verdict.kind, verdict.passed) == ("missing-package", False)
        assert f"No module named '{package}" in verdict.detail
    assert run(program, "assert f(1) == 2", together=True).kind == "missing-package"


@pytest.mark.parametrize("module", ["numpy.no_such_part", "collections.no_such_part", "judge"])
def test_a_missing_module_of_a_known_package_is_an_exception(module):
    assert run(f"import {module}\ndef f(x): return 2", "assert f(1) == 2").kind == "exception"


def test_an_import_that_is_caught_is_no_failure():
    program = "try:\n    import scipy\nexcept ImportError:\n    scipy = None\ndef f(x): return x + 1"
    assert run_programs([Job(program, "assert f(1) == 2", ("f",))], "bwrap")[0].passed


def test_the_record_says_which_packages_there_were_and_which_were_missed():
    settings = EvalSettings()
    assert ToyCode().rules(settings)["packages"]["numpy"] == version("numpy") == packages.offered_versions()["numpy"]
    assert set(packages.offered_versions()) <= set(packages.OFFERED)
    benchmark = ToyCode()
    rows = benchmark.data(settings).rows[:3]
    texts = ["    import scipy.stats\n", "    import sklearn\n", "    import scipy\n"]
    scored, details = benchmark.score(rows, texts, settings)
    assert [score.extra["kind"] for score in scored] == ["missing-package"] * 3
    assert [score.verdicts["tests"] for score in scored] == ["wrong"] * 3
    assert details["missing_packages"] == {"scipy": 2, "sklearn": 1}
    assert details["kinds"] == {"missing-package": 3}
    assert details["packages"] == dict(packages.offered_versions())


def test_a_package_without_what_it_needs_is_not_offered(monkeypatch):
    installed = dict(packages._installed())
    monkeypatch.setattr(packages, "_installed", lambda: {k: v for k, v in installed.items() if k != "python-dateutil"})
    offered = packages.offered_versions.__wrapped__()
    assert "numpy" in offered
    assert "pandas" not in offered


def test_packages_of_the_working_directory_are_not_offered(monkeypatch, tmp_path):
    (tmp_path / "numpy-99.dist-info").mkdir()
    (tmp_path / "numpy-99.dist-info" / "METADATA").write_text("Name: numpy\nVersion: 99\n")
    (tmp_path / "numpy-99.dist-info" / "RECORD").write_text("numpy/__init__.py,,\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert version("numpy") == "99"
    assert packages._installed.__wrapped__()["numpy"].version == np.__version__
