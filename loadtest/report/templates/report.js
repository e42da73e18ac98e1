"use strict";
// Filtering: a long table gets a field; a line stays when it holds every word. Paper shows all lines again.
for (const table of document.querySelectorAll("section[id]:not(#answer) table")) {
  const bodies = [...table.tBodies];
  if (bodies.length < 7) continue;
  const bar = document.createElement("p");
  const field = document.createElement("input");
  const count = document.createElement("span");
  bar.className = "filter";
  field.type = "search";
  field.placeholder = "Filter";
  field.setAttribute("aria-label", `Filter the lines of ${table.parentElement.getAttribute("aria-label")}`);
  count.setAttribute("role", "status");
  bar.append(field, count);
  table.parentElement.before(bar);
  const texts = new Map(bodies.map((body) => [body, body.textContent.toLowerCase().replace(/\s+/g, " ")]));
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(" ").filter(Boolean);
    for (const [body, text] of texts) body.hidden = !words.every((word) => text.includes(word));
    const left = bodies.filter((body) => !body.hidden).length;
    count.textContent = words.length ? `${left} of ${bodies.length} lines` : "";
  });
}
// Sorting: each heading of the last header row becomes a button. A line and its remarks are one tbody and move together.
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.querySelectorAll(".heads th")];
  const original = [...table.tBodies];
  const value = (body, place) => {
    const cell = body.rows[0].cells[place];
    return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
  };
  heads.forEach((head, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const next = { none: "ascending", ascending: "descending", descending: "none" }[head.ariaSort ?? "none"];
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      const bodies = [...original];
      if (next !== "none") {
        head.setAttribute("aria-sort", next);
        const sign = next === "ascending" ? 1 : -1;
        const numeric = head.classList.contains("number");
        const known = (body) => !numeric || typeof value(body, place) === "number";
        bodies.sort((a, b) => {
          // What has no number stands last in both directions.
          if (!known(a) || !known(b)) return known(b) - known(a);
          const [x, y] = [value(a, place), value(b, place)];
          return sign * (typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y)));
        });
      }
      table.append(...bodies);
    });
  });
}
// A mark of a chart says its numbers when it is pointed at.
const tip = document.getElementById("tip");
const mark = (event) => event.target.closest?.('.panels :is([aria-roledescription="point"], [aria-roledescription="bar"])');
document.addEventListener("pointerover", (event) => {
  const found = mark(event);
  tip.hidden = !found;
  if (!found) return;
  tip.textContent = found.getAttribute("aria-label");
  const box = found.getBoundingClientRect();
  const left = Math.min(Math.max(8, box.left + box.width / 2 - tip.offsetWidth / 2), innerWidth - tip.offsetWidth - 8);
  tip.style.left = `${left}px`;
  tip.style.top = `${box.top > tip.offsetHeight + 16 ? box.top - tip.offsetHeight - 8 : box.bottom + 8}px`;
});
document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true, capture: true });
