
// Filters: boards by model and task, columns by ratio band, rows by name and source.
(function () {
  const form = document.getElementById("filters");
  const status = document.getElementById("shown");
  const boards = Array.from(document.querySelectorAll("section.board"));
  const chosen = (name) => document.getElementById("filter-" + name)?.value || "";
  function filterTable(table, band, word, source) {
    const heads = Array.from(table.tHead.rows[0].cells);
    const shown = heads.map((head) => !band || !head.dataset.group || head.dataset.group === band);
    heads.forEach((head, i) => { head.hidden = !shown[i]; });
    let rows = 0;
    for (const row of table.tBodies[0].rows) {
      const name = row.cells[0];
      const submitted = name.classList.contains("submitted");
      let fits = !word || name.textContent.toLowerCase().includes(word);
      if (source) fits = fits && submitted === (source === "submitted");
      let filled = !band;
      for (let i = 1; i < row.cells.length; i++) {
        row.cells[i].hidden = !shown[i];
        if (band && shown[i] && row.cells[i].textContent) filled = true;
      }
      row.hidden = !(fits && filled);
      rows += !row.hidden;
    }
    return rows;
  }
  function apply() {
    const model = chosen("model"), task = chosen("task"), band = chosen("band"), source = chosen("source");
    const word = chosen("method").trim().toLowerCase();
    const narrow = Boolean(band || word || source);
    let rows = 0, count = 0;
    for (const board of boards) {
      let fits = (!model || board.dataset.model === model) && (!task || board.dataset.task === task)
        && (!band || board.dataset.bands.split(" ").includes(band));
      if (fits) {
        const table = board.querySelector("table[id$='-ranks']");
        const found = table ? filterTable(table, band, word, source) : 0;
        fits = found > 0 || !narrow;
        rows += found;
      }
      board.hidden = !fits;
      count += fits;
    }
    status.textContent = count + " of " + boards.length + " boards, " + rows + " rows shown";
  }
  let waiting = 0;
  form.addEventListener("input", function () { clearTimeout(waiting); waiting = setTimeout(apply, 80); });
  form.addEventListener("reset", function () { setTimeout(apply, 0); });
  form.addEventListener("submit", function (event) { event.preventDefault(); apply(); });
  form.hidden = false;
  apply();
})();
