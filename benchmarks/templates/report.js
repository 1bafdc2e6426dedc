"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const one = (selector) => document.querySelector(selector);

  // Sorting: first order of the column, then the other, then as the page came. Stable; cells
  // without a value stay at the end either way.
  const original = new Map(all("tbody").map((body) => [body, [...body.rows]]));

  function sortBy(heading) {
    const table = heading.closest("table");
    const body = table.tBodies[0];
    const first = heading.dataset.first === "desc" ? "descending" : "ascending";
    const second = first === "ascending" ? "descending" : "ascending";
    const before = heading.getAttribute("aria-sort");
    const order = before === first ? second : before === second ? null : first;
    all("th", table).forEach((other) => other.removeAttribute("aria-sort"));
    const rows = [...original.get(body)];
    if (order) {
      heading.setAttribute("aria-sort", order);
      const value = (row) => row.cells[heading.cellIndex].dataset.value;
      const known = rows.filter((row) => value(row) !== undefined);
      const numeric = known.every((row) => Number.isFinite(Number(value(row))));
      const sign = order === "ascending" ? 1 : -1;
      known.sort((a, b) =>
        sign * (numeric ? value(a) - value(b) : value(a).localeCompare(value(b), "en")));
      rows.splice(0, rows.length, ...known, ...rows.filter((row) => value(row) === undefined));
    }
    body.append(...rows);
  }

  // Filters: what is hidden follows from the form alone.
  const boxes = all("input[name=method]");

  function show() {
    const protocol = one("#protocol").value;
    const regime = one("#regime").value;
    const methods = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
    all("[data-protocol]").forEach((part) => {
      part.hidden = protocol !== "" && part.dataset.protocol !== protocol;
    });
    all("tr[data-method]").forEach((row) => {
      row.hidden = !methods.has(row.dataset.method);
    });
    all("[data-regime]").forEach((part) => {
      part.hidden = regime !== "" && part.dataset.regime !== regime;
    });
    one("#count").textContent =
      methods.size === boxes.length ? "all" : `${methods.size} of ${boxes.length}`;
  }

  all("thead th").forEach((heading) =>
    heading.querySelector("button").addEventListener("click", () => sortBy(heading)));
  one(".filters").addEventListener("change", show);
  all("[data-choose]").forEach((button) =>
    button.addEventListener("click", () => {
      boxes.forEach((box) => { box.checked = button.dataset.choose === "all"; });
      show();
    }));
  one("#theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.style.colorScheme
      ? root.style.colorScheme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    root.style.colorScheme = dark ? "light" : "dark";
  });
  show();
})();
