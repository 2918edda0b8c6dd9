"use strict";
// Sorting and filtering of tables, and tooltips in figures. The page works without this script.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const falling = head.getAttribute("aria-sort") === "ascending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      body.append(...sorted([...body.rows], column, falling));
    });
  });
}

function sorted(rows, column, falling) {
  const numeric = rows.some(row => "value" in row.cells[column].dataset);
  const key = row => numeric ? row.cells[column].dataset.value : row.cells[column].textContent.trim();
  const full = rows.filter(row => key(row) !== "");  // rows without a value stay at the end
  const empty = rows.filter(row => key(row) === "");
  const compare = numeric ? (a, b) => key(a) - key(b)
    : (a, b) => key(a).localeCompare(key(b), "en", { numeric: true });
  full.sort((a, b) => (falling ? -1 : 1) * compare(a, b));
  return [...full, ...empty];
}

const filter = document.getElementById("filter");
if (filter) {
  const rows = [...filter.closest("section").querySelectorAll("table.sortable tbody tr")];
  const show = () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) {
      const text = `${row.className} ${[...row.cells].slice(0, 4).map(c => c.textContent).join(" ")}`;
      row.hidden = !words.every(word => text.toLowerCase().includes(word));
    }
    const shown = rows.filter(row => !row.hidden).length;
    document.getElementById("count").textContent = `${shown} of ${rows.length}`;
  };
  filter.addEventListener("input", show);
  filter.closest(".tools").hidden = false;
  show();
}

const tip = document.getElementById("tip");
const REACH = 26;  // maximum distance from a point in pixels
for (const plot of document.querySelectorAll(".plot")) {
  const marks = [...plot.querySelectorAll("i")].map(element => {
    const text = element.title;
    element.removeAttribute("title");  // replaced by the tooltip below
    return { element, text };
  });
  const clear = () => {
    tip.hidden = true;
    marks.forEach(mark => mark.element.classList.remove("near"));
  };
  const hover = event => {
    clear();
    let best = null, least = REACH;
    for (const mark of marks) {
      const box = mark.element.getBoundingClientRect();
      const far = Math.hypot(event.clientX - box.x - box.width / 2, event.clientY - box.y - box.height / 2);
      if (far < least) { least = far; best = mark; }
    }
    if (!best) return;
    best.element.classList.add("near");
    tip.textContent = best.text;
    tip.hidden = false;
    const left = Math.min(event.clientX + 14, document.documentElement.clientWidth - tip.offsetWidth - 8);
    const below = event.clientY + 18 + tip.offsetHeight < document.documentElement.clientHeight;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${below ? event.clientY + 18 : event.clientY - tip.offsetHeight - 12}px`;
  };
  plot.addEventListener("pointermove", hover);
  plot.addEventListener("pointerdown", hover);
  plot.addEventListener("pointerleave", clear);
}
