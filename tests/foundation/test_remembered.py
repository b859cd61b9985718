"""Results that are kept between processes."""

import pytest

from lowrank_bench.foundation.checksums import CACHE
from lowrank_bench.foundation.remembered import remembered


def test_a_result_is_computed_once(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    results = iter(([1, True], {"other": 2}))
    assert remembered("a", lambda: next(results)) == [1, True]
    assert remembered("a", lambda: pytest.fail("computed twice")) == [1, True]
    assert remembered("b", lambda: next(results)) == {"other": 2}


def test_what_fails_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    with pytest.raises(ZeroDivisionError):
        remembered("a", lambda: 1 // 0)
    assert remembered("a", lambda: 3) == 3


@pytest.mark.parametrize("content", [b"no database", None])
def test_a_cache_that_cannot_be_used_costs_only_time(tmp_path, monkeypatch, content):
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    if content is None:
        (tmp_path / "cache").touch()
    else:
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache" / "results.sqlite").write_bytes(content)
    assert [remembered("a", lambda value=value: value) for value in (1, 2)] == [1, 2]
