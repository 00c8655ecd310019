// Sorts the table by the heading that is clicked, and keeps order and opened runs when the page reloads itself.
(() => {
  const table = document.querySelector("table.sortable");
  const kept = JSON.parse(recall() || "{}");

  function recall() {
    try { return sessionStorage.getItem(location.pathname); } catch { return null; }
  }

  function keep() {
    try { sessionStorage.setItem(location.pathname, JSON.stringify(kept)); } catch { /* the page works without */ }
  }

  function sort(name, descending) {
    const headings = [...table.tHead.rows[0].cells];
    const column = headings.findIndex((heading) => heading.dataset.column === name);
    if (column === -1) return;
    const key = (row) => row.cells[column].dataset.key;
    const before = (a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === ""); // what has no value stands last
      const order = isNaN(x) || isNaN(y) ? x.localeCompare(y, undefined, { numeric: true }) : x - y;
      return descending ? -order : order;
    };
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(before));
    headings.forEach((heading, at) => {
      if (at === column) heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
      else heading.removeAttribute("aria-sort");
    });
    Object.assign(kept, { name, descending });
    keep();
  }

  function choose(heading) {
    const numbers = heading.classList.contains("number");
    const again = heading.getAttribute("aria-sort");
    sort(heading.dataset.column, again ? again === "ascending" : numbers); // of figures the largest first
  }

  for (const heading of table.querySelectorAll("th[data-column]")) {
    heading.addEventListener("click", () => choose(heading));
    heading.addEventListener("keydown", (event) => { if (event.key === "Enter") choose(heading); });
  }
  if (kept.name) sort(kept.name, kept.descending);

  kept.open = kept.open || {};
  for (const run of document.querySelectorAll("details")) {
    if (run.dataset.run in kept.open) run.open = kept.open[run.dataset.run];
    run.addEventListener("toggle", () => { kept.open[run.dataset.run] = run.open; keep(); });
  }
  addEventListener("hashchange", reveal);
  reveal();

  function reveal() {
    const run = document.getElementById(location.hash.slice(1));
    if (run && run.tagName === "DETAILS") run.open = true;
  }
})();
