
"use strict";
// Headings of sortable tables become buttons; without this script the tables are complete, in the order of the file.
(function () {
  function value(row, column, numeric) {
    const cell = row.cells[column];
    if (!cell) return numeric ? NaN : "";
    if (!numeric) return cell.textContent.trim();
    if (cell.dataset.value !== undefined) {
      return { inf: Infinity, "-inf": -Infinity }[cell.dataset.value] ?? Number(cell.dataset.value);
    }
    const text = cell.textContent.replace(/[,\s]/g, "");
    return text === "" ? NaN : parseFloat(text);
  }
  function sort(table, column, direction, numeric) {
    const body = table.tBodies[0];
    const rows = Array.from(body.rows);
    const pinned = rows.filter((row) => row.dataset.pinned !== undefined);
    const keyed = rows.filter((row) => row.dataset.pinned === undefined)
      .map((row, place) => ({ row, place, key: value(row, column, numeric) }));
    const collator = new Intl.Collator("en", { numeric: true });
    keyed.sort(function (a, b) {
      const noA = numeric ? Number.isNaN(a.key) : a.key === "";
      const noB = numeric ? Number.isNaN(b.key) : b.key === "";
      if (noA || noB) return noA - noB || a.place - b.place;
      const order = numeric ? Math.sign(a.key - b.key) || 0 : collator.compare(a.key, b.key);
      return order * direction || a.place - b.place;
    });
    body.append(...pinned, ...keyed.map((item) => item.row));
  }
  for (const table of document.querySelectorAll("table.sortable")) {
    Array.from(table.tBodies[0].rows).slice(0, Number(table.dataset.pinned)).forEach((row) => { row.dataset.pinned = ""; });
    Array.from(table.tHead.rows[0].cells).forEach(function (head, column) {
      if (head.dataset.sort === undefined) return;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", function () {
        const numeric = head.classList.contains("number");
        const before = head.getAttribute("aria-sort");
        const next = before ? (before === "ascending" ? "descending" : "ascending")
          : head.dataset.sort || "ascending";
        for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", next);
        sort(table, column, next === "ascending" ? 1 : -1, numeric);
      });
    });
  }
  // A link into a closed <details> opens it.
  function reveal() {
    const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    for (let parent = target.closest("details"); parent; parent = parent.parentElement.closest("details")) parent.open = true;
    target.scrollIntoView({ block: "center" });
    if (target.tabIndex === -1 && target.id !== "main") target.focus({ preventScroll: true });
  }
  window.addEventListener("hashchange", reveal);
  reveal();
  // Paper shows everything.
  let closed = [];
  window.addEventListener("beforeprint", function () {
    closed = Array.from(document.querySelectorAll("details:not([open])"));
    closed.forEach((part) => { part.open = true; });
  });
  window.addEventListener("afterprint", function () { closed.forEach((part) => { part.open = false; }); });
})();
