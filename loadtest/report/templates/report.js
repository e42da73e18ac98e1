"use strict";
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
const mark = (event) => event.target.closest?.('.panels [aria-roledescription="point"]');
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
