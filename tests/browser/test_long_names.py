"""Labels of the greatest length on the leaderboard and in the report: no word is broken, nothing is cut off."""

import os
from pathlib import Path

import pytest
from made_records import make_sweep

from lowrank_bench.records.files import to_frame, to_records, write_records
from lowrank_bench.results.leaderboard.boards import boards
from lowrank_bench.results.leaderboard.page import to_html
from lowrank_bench.results.report.gather import gather
from lowrank_bench.results.report.page import report_page

LABELS = (
    "Calibrated_with_the_training_data_of_the_task_itself_more_60",
    "a-rather-long-alias-for-a-method",
    "svd-llm:length=512,samples=16,policy=sensitivity(slope=0.25)",
    "svd",
)
SIZES = {1200: {"width": 1200, "height": 900}, 390: {"width": 390, "height": 780}}
OPEN = (
    "document.querySelectorAll('details').forEach((part) => { part.open = true; });"
    "document.querySelectorAll('.board').forEach((part) => { part.style.contentVisibility = 'visible'; });"
)
BROKEN = r"""() => {
  const broken = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    if (!node.parentElement.closest("th, td, h1, h2, h3, h4, li, dt, caption, summary, figcaption")) continue;
    for (const match of node.textContent.matchAll(/[A-Za-z]+/g)) {
      const range = document.createRange();
      range.setStart(node, match.index);
      range.setEnd(node, match.index + match[0].length);
      const lines = new Set(Array.from(range.getClientRects(), (box) => Math.round(box.top)));
      if (lines.size > 1) broken.push(match[0] + " in " + node.parentElement.textContent);
    }
  }
  return broken;
}"""
GROUPS = "Array.from(document.querySelectorAll('.whole'), (group) => group.getClientRects().length)"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The report and the leaderboard of a sweep whose methods have long labels and whose benchmark has a long name."""
    folder = tmp_path_factory.mktemp("long")
    variant = "gsm8k-with-a-long-variant-of-the-prompt-0shot-alpaca"
    frame = to_frame([record for label in LABELS for record in make_sweep(("svd",), label=label, variant=variant)])
    frame.loc[frame["method"] == "none", "label"] = "none"
    frame["sweep"] = "a-rather-long-name-of-a-run-that-somebody-gave-to-it"
    write_records(folder / "run", to_records(frame.drop_duplicates(["label", "ratio_target", "stage"])))
    paths = {name: folder / f"{name}.html" for name in ("report", "leaderboard")}
    paths["report"].write_text(report_page(gather(folder / "run")), encoding="utf-8")
    paths["leaderboard"].write_text(to_html(boards(frame.assign(origin=""), {}, {}), submissions=[]), encoding="utf-8")
    return paths


@pytest.mark.parametrize("name", ["report", "leaderboard"])
@pytest.mark.parametrize("width", SIZES)
def test_no_word_is_broken_and_nothing_overflows(pages, open_page, name, width):
    opened = open_page(pages[name], size=SIZES[width])
    opened.page.evaluate(OPEN)
    text = opened.page.locator("main").inner_text().replace("\n", " ")
    assert all(label in text for label in LABELS)
    assert opened.page.evaluate(BROKEN) == []
    groups = opened.page.evaluate(GROUPS)
    assert groups
    assert set(groups) == {1}
    assert opened.overflow() <= 0
    assert opened.violations() == []
    if folder := os.environ.get("LOWRANK_BENCH_SCREENSHOTS"):
        opened.page.screenshot(path=Path(folder) / f"long-{name}-{width}.png", full_page=True)


def test_a_broken_word_would_be_seen(pages, open_page):
    opened = open_page(pages["report"], size=SIZES[390])
    opened.page.evaluate(OPEN)
    opened.page.evaluate("document.querySelectorAll('wbr').forEach((point) => point.remove())")
    assert opened.page.evaluate(BROKEN)
