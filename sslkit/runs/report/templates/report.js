"use strict";

// Tables: a heading is a button that sorts its column, first ascending, then descending; rows without a number stay last.
function sortKey(row, column) {
  const cell = row.cells[column];
  const text = cell.dataset.value ?? cell.textContent.trim();
  const number = Number(text.replace(/,(?=\d{3})/g, "").replace(/\s*%$/, ""));
  return { text, number: text === "" || Number.isNaN(number) ? null : number };
}

function compare(a, b, sign) {
  if (a.number !== null && b.number !== null) return sign * (a.number - b.number);
  if (a.number !== null || b.number !== null) return a.number === null ? 1 : -1;
  if ((a.text === "—") !== (b.text === "—")) return a.text === "—" ? 1 : -1;
  return sign * a.text.localeCompare(b.text, "en", { numeric: true });
}

function sortBy(heading) {
  const up = heading.getAttribute("aria-sort") !== "ascending";
  for (const other of heading.parentElement.cells) {
    if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
  }
  heading.setAttribute("aria-sort", up ? "ascending" : "descending");
  const body = heading.closest("table").tBodies[0];
  const keyed = [...body.rows].map((row) => [sortKey(row, heading.cellIndex), row]);
  keyed.sort(([a], [b]) => compare(a, b, up ? 1 : -1));
  body.append(...keyed.map(([, row]) => row));
}

for (const button of document.querySelectorAll("thead button")) {
  button.addEventListener("click", () => sortBy(button.parentElement));
}

for (const box of document.querySelectorAll("input.defaults")) {
  const update = () => document.querySelector("table.settings").classList.toggle("only-given", !box.checked);
  box.addEventListener("change", update);
  update();
}

// Shared by charts and maps: the point nearest to a position, and the next one in the direction of an arrow key.
function nearest(points, x, y) {
  let best = -1, least = Infinity;
  points.forEach((point, i) => {
    const distance = point && (point[0] - x) ** 2 + (point[1] - y) ** 2;
    if (point && distance < least) [best, least] = [i, distance];
  });
  return best;
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function neighbour(points, from, [dx, dy]) {
  let best = from, least = Infinity;
  const [x, y] = points[from];
  points.forEach((point, i) => {
    if (!point || i === from) return;
    const along = (point[0] - x) * dx + (point[1] - y) * dy;
    const aside = Math.abs((point[0] - x) * dy) + Math.abs((point[1] - y) * dx);
    // Perpendicular distance counts double, so that arrow keys follow a row of points.
    if (along > 0 && along + 2 * aside < least) [best, least] = [i, along + 2 * aside];
  });
  return best;
}

function explore(area, points, show) {
  let current = -1;
  const choose = (i) => { current = i; show(i); };
  const at = (event) => {
    const box = area.getBoundingClientRect();
    const [x, y] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    choose(nearest(points(), x, y));
  };
  area.addEventListener("pointermove", at);
  area.addEventListener("pointerdown", at);
  area.addEventListener("pointerleave", () => choose(-1));
  area.addEventListener("blur", () => choose(-1));
  area.addEventListener("keydown", (event) => {
    const all = points();
    if (event.key === "Escape") choose(-1);
    if (!(event.key in ARROWS) && event.key !== "Home" && event.key !== "End") return;
    event.preventDefault();
    const shown = all.map((point, i) => (point ? i : -1)).filter((i) => i >= 0);
    if (!shown.length) return;
    if (event.key === "Home" || (current < 0 && event.key !== "End")) choose(shown[0]);
    else if (event.key === "End") choose(shown.at(-1));
    else choose(neighbour(all, current, ARROWS[event.key]));
  });
  return { clear: () => choose(-1), current: () => current };
}

// Charts.
for (const plot of document.querySelectorAll(".plot")) {
  const points = JSON.parse(plot.dataset.points);
  const mark = plot.querySelector(".mark");
  const reading = plot.parentElement.querySelector(".reading");
  explore(plot, () => points, (i) => {
    mark.hidden = i < 0;
    reading.textContent = i < 0 ? "" : points[i][2];
    if (i >= 0) Object.assign(mark.style, { left: `${100 * points[i][0]}%`, top: `${100 * points[i][1]}%` });
  });
}

// Maps of embeddings.
const SHAPES = 5, COLOURS = 8;

function draw(context, x, y, label, size) {
  const colour = getComputedStyle(document.documentElement).getPropertyValue(`--s${label % COLOURS}`);
  context.fillStyle = context.strokeStyle = colour;
  context.lineWidth = 1.8;
  context.beginPath();
  const shape = label % SHAPES;
  if (shape === 0) context.arc(x, y, size, 0, 2 * Math.PI);
  if (shape === 1) context.rect(x - size * 0.9, y - size * 0.9, size * 1.8, size * 1.8);
  if (shape === 2) polygon(context, x, y, size * 1.3, 3);
  if (shape === 3) polygon(context, x, y, size * 1.25, 4);
  if (shape === 4) {
    context.moveTo(x - size, y - size); context.lineTo(x + size, y + size);
    context.moveTo(x - size, y + size); context.lineTo(x + size, y - size);
    context.stroke();
  } else context.fill();
}

function polygon(context, x, y, size, corners) {
  for (let i = 0; i < corners; i++) {
    const angle = (2 * Math.PI * i) / corners - Math.PI / 2;
    context.lineTo(x + size * Math.cos(angle), y + size * Math.sin(angle));
  }
  context.closePath();
}

function Explorer(root) {
  const data = JSON.parse(root.querySelector("script").textContent);
  const stage = root.querySelector(".stage"), canvas = stage.querySelector("canvas");
  const tip = root.querySelector(".tip"), reading = root.querySelector(".reading");
  const map = root.querySelector("select.map"), only = root.querySelector("select.class");
  const thumb = tip.querySelector(".thumb"), margin = 0.04;
  if (data.sprite) thumb.style.backgroundImage = `url(${data.sprite.address})`;
  else thumb.remove();
  let points = [];

  function place() {
    const raw = data.maps[map ? map.value : Object.keys(data.maps)[0]];
    const shown = (i) => !only || only.value === "" || data.labels[i] === Number(only.value);
    // y grows upwards in the data and downwards on the screen.
    points = raw.map(([x, y], i) => shown(i) && [margin + x * (1 - 2 * margin), 1 - margin - y * (1 - 2 * margin)]);
  }

  function paint(chosen = -1) {
    const scale = window.devicePixelRatio || 1, side = stage.clientWidth;
    canvas.width = canvas.height = Math.round(side * scale);
    const context = canvas.getContext("2d");
    context.scale(scale, scale);
    const size = Math.max(2.2, Math.min(4, 90 / Math.sqrt(points.length)));
    points.forEach((p, i) => p && draw(context, p[0] * side, p[1] * side, data.labels[i], size));
    if (chosen < 0) return;
    context.strokeStyle = getComputedStyle(document.documentElement).getPropertyValue("--fg");
    context.lineWidth = 2;
    context.beginPath();
    context.arc(points[chosen][0] * side, points[chosen][1] * side, size + 4, 0, 2 * Math.PI);
    context.stroke();
  }

  function show(i) {
    paint(i);
    tip.hidden = i < 0;
    // Images without labels have no classes.
    const name = i < 0 ? undefined : data.classes[data.labels[i]];
    const which = `image ${i + 1} of ${points.length}`;
    reading.textContent = i < 0 ? "" : name === undefined ? which : `${name}, ${which}`;
    if (i < 0) return;
    tip.querySelector(".what").textContent = name ?? which;
    if (data.sprite) {
      const { columns } = data.sprite;
      thumb.style.backgroundSize = `${columns * 64}px auto`;
      thumb.style.backgroundPosition = `${-(i % columns) * 64}px ${-Math.floor(i / columns) * 64}px`;
    }
    const [x, y] = points[i];
    tip.style.left = x < 0.5 ? `calc(${100 * x}% + 14px)` : "";
    tip.style.right = x < 0.5 ? "" : `calc(${100 * (1 - x)}% + 14px)`;
    tip.style.top = y < 0.5 ? `${100 * y}%` : "";
    tip.style.bottom = y < 0.5 ? "" : `${100 * (1 - y)}%`;
  }

  const pointer = explore(stage, () => points, show);
  const renew = () => { place(); pointer.clear(); };
  for (const select of [map, only]) if (select) select.addEventListener("change", renew);
  const keys = () => root.querySelectorAll(".key").forEach((key) => {
    const context = key.getContext("2d");
    context.clearRect(0, 0, 18, 18);
    draw(context, 9, 9, Number(key.dataset.class), 5);
  });
  const all = () => { paint(pointer.current()); keys(); };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", all);
  new ResizeObserver(all).observe(stage);
  window.addEventListener("beforeprint", all);
  place();
  all();
}

for (const root of document.querySelectorAll(".explorer")) Explorer(root);
