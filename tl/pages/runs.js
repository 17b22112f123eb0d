"use strict";
const box = document.getElementById("search"), count = document.getElementById("count");
const body = document.querySelector("#runs tbody"), rows = [...body.rows];
const texts = rows.map(row => row.textContent.toLowerCase());

function show() {
  const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  rows.forEach((row, i) => {
    row.hidden = !words.every(word => texts[i].includes(word));
    shown += !row.hidden;
  });
  count.textContent = words.length ? `${shown} of ${rows.length} runs` : `${rows.length} runs`;
}

function sort(column, ascending) {
  const key = row => row.cells[column].dataset.key || "";
  const compare = (a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === "" || y === "") return (x === "") - (y === ""); // runs without a value come last
    const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
    return ascending ? order : -order;
  };
  body.append(...[...rows].sort(compare));
}

function remember() { // the address names the search, so that it can be kept
  const text = box.value ? "#" + encodeURIComponent(box.value) : " ";
  try { history.replaceState(null, "", text.trim() || location.pathname); } catch { /* file:// */ }
}

document.querySelectorAll("#runs th").forEach((title, column) => {
  let ascending = false;
  title.style.cursor = "pointer";
  title.addEventListener("click", () => sort(column, (ascending = !ascending)));
});
box.addEventListener("input", () => { show(); remember(); });
box.value = decodeURIComponent(location.hash.slice(1));
show();
