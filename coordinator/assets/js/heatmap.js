// Heat maps: shares over steps on a canvas, and a group's cosine matrix as a table.
import { el, replace, table } from "./dom.js";
import { count, fixed, percent } from "./format.js";

// Dark to bright, even in lightness and readable without red and green.
const RAMP = [
  [0, [247, 249, 252], [30, 35, 43]],
  [0.12, [205, 222, 240], [38, 66, 98]],
  [0.35, [120, 170, 215], [52, 116, 168]],
  [0.65, [45, 105, 165], [118, 180, 228]],
  [1, [12, 40, 84], [236, 245, 255]],
];

const isDark = () => {
  const theme = document.documentElement.getAttribute("data-theme");
  return theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
};

function ramp(value, dark) {
  const at = Math.min(Math.max(value, 0), 1);
  const next = Math.max(RAMP.findIndex(([edge]) => edge >= at), 1);
  const [[low, ...a], [high, ...b]] = [RAMP[next - 1], RAMP[next]];
  const t = (at - low) / (high - low);
  const [from, to] = [a[dark ? 1 : 0], b[dark ? 1 : 0]];
  return from.map((c, i) => Math.round(c + (to[i] - c) * t));
}

const known = new Set();
document.addEventListener("themechange", () => known.forEach((map) => map.draw()));

// Shares of cosine bins over steps; `update(steps, columns)` with columns of shares from -1 to 1.
export class CosineMap {
  constructor({ title, unit }) {
    this.title = title;
    this.canvas = el("canvas", { class: "map", role: "img", "aria-label": `${title}: no values yet` });
    this.x = el("div", { class: "x", "aria-hidden": "true" });
    this.note = el("span", { class: "legend" });
    this.values = el("details", null, el("summary", null, "Table"));
    this.values.addEventListener("toggle", () => this.fillTable());
    this.plot = el("div", { class: "plot" }, this.canvas);
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerleave", () => this.legend());
    const y = el("div", { class: "y", "aria-hidden": "true" }, ["1", "0.5", "0", "−0.5", "−1"].map((t) => el("span", null, t)));
    this.element = el(
      "figure",
      { class: "chart wide" },
      el("figcaption", null, el("h3", null, title), el("span", { class: "unit" }, unit), this.note),
      el("div", { class: "mapbox" }, y, this.plot, this.x),
      this.values,
    );
    known.add(this);
  }

  remove() {
    known.delete(this);
  }

  update(steps, columns) {
    this.steps = steps;
    this.columns = columns;
    this.most = Math.max(...columns.flat(), 0);
    const has = columns.some((c) => c.length > 0);
    this.plot.querySelector(".none")?.remove();
    if (!has) this.plot.append(el("span", { class: "none" }, "No pairs yet: features are off, or no step is complete"));
    this.canvas.setAttribute("aria-label", has ? `${this.title}, steps ${steps[0]} to ${steps.at(-1)}; the same is in the table.` : `${this.title}: no values yet`);
    const marks = steps.length > 1 ? [steps[0], steps[Math.floor(steps.length / 2)], steps.at(-1)] : steps;
    replace(this.x, marks.map((s) => el("span", null, count(s))));
    this.legend();
    this.draw();
    if (this.values.open) this.fillTable();
  }

  draw() {
    if (!this.columns) return;
    const bins = Math.max(...this.columns.map((c) => c.length), 1);
    this.canvas.width = Math.max(this.columns.length, 1);
    this.canvas.height = bins;
    const context = this.canvas.getContext("2d");
    const image = context.createImageData(this.canvas.width, bins);
    const dark = isDark();
    this.columns.forEach((column, x) => {
      for (let bin = 0; bin < bins; bin++) {
        // The square root shows rare pairs, too.
        const [r, g, b] = ramp(Math.sqrt((column[bin] ?? 0) / (this.most || 1)), dark);
        image.data.set([r, g, b, 255], 4 * ((bins - 1 - bin) * this.canvas.width + x));
      }
    });
    context.putImageData(image, 0, 0);
  }

  legend(extra) {
    const scale = el("span", { class: "ramp", "aria-hidden": "true" });
    const dark = isDark();
    const stops = [0, 0.25, 0.5, 0.75, 1].map((t) => `rgb(${ramp(t, dark).join()})`);
    scale.style.backgroundImage = `linear-gradient(to right, ${stops.join()})`;
    replace(this.note, el("span", null, "0 % ", scale, ` ${percent(this.most)} of a step's pairs`), extra && el("b", null, extra));
  }

  point(event) {
    const box = this.canvas.getBoundingClientRect();
    const at = Math.floor(((event.clientX - box.left) / box.width) * this.columns.length);
    const column = this.columns[at];
    if (!column?.length) return this.legend();
    const bin = Math.min(column.length - 1, Math.max(0, Math.floor((1 - (event.clientY - box.top) / box.height) * column.length)));
    const low = -1 + (2 * bin) / column.length;
    this.legend(`step ${count(this.steps[at])}, cosine ${fixed(low, 2)} to ${fixed(low + 2 / column.length, 2)}: ${percent(column[bin])}`);
  }

  fillTable() {
    const summary = this.values.querySelector("summary");
    if (!this.values.open || !this.columns) return replace(this.values, summary);
    const width = 0.25;
    const ranges = Array.from({ length: 8 }, (_, i) => -1 + i * width);
    const share = (column, low) => {
      const per = column.length * (width / 2);
      const first = Math.round(((low + 1) / 2) * column.length);
      return column.slice(first, first + per).reduce((sum, s) => sum + s, 0);
    };
    const columns = [
      { title: "step", number: true, cell: (i) => count(this.steps[i]) },
      ...ranges.map((low) => ({
        title: `${fixed(low, 2)} to ${fixed(low + width, 2)}`,
        number: true,
        cell: (i) => (this.columns[i].length ? percent(share(this.columns[i], low)) : "–"),
      })),
    ];
    const rows = this.steps.map((_, i) => this.steps.length - 1 - i);
    replace(this.values, summary, table(`${this.title}, latest first`, columns, rows));
  }
}

// A group's cosines as a table whose cells are coloured: blue for the same direction, orange for the opposite.
export function cosineMatrix(cosine) {
  const cell = (value, self) => {
    const td = el("td", { class: self ? "self" : null }, fixed(value, 2));
    if (!self) {
      // Up to here text is readable on it in both themes.
      const strength = Math.round(Math.min(Math.abs(value), 1) * 60);
      td.style.backgroundColor = `color-mix(in srgb, var(--series-${value < 0 ? 2 : 1}) ${strength}%, var(--surface))`;
    }
    return td;
  };
  const head = el("tr", null, el("td", { class: "self" }), cosine.map((_, i) => el("th", { scope: "col" }, String(i))));
  const body = cosine.map((row, i) => el("tr", null, el("th", { scope: "row" }, String(i)), row.map((v, j) => cell(v, i === j))));
  return el(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": "Gradient cosines of the responses" },
    el("table", { class: "cosines" }, el("caption", null, "Cosine of the gradient features of each two responses"), el("thead", null, head), el("tbody", null, body)),
  );
}

