// Line charts over steps: drawn by uPlot, read by keyboard and as a table. They know nothing of where values come from.
//
// new Chart({ title, unit, series: [{ name, label, color }], stacked, wide, format })
// chart.update(x, { name: { mean, min, max } }) may be called again and again; `chart.element` is a figure.
import uPlot from "../vendor/uplot-1.6.32/uPlot.esm.js";
import { color, el, replace, table } from "./dom.js";
import { count, number, percent } from "./format.js";

const HEIGHT = 180;
const WIDE_HEIGHT = 220;

const known = new Set();
document.addEventListener("themechange", () => known.forEach((chart) => chart.redraw()));

export class Chart {
  constructor(options) {
    this.options = { format: number, xLabel: "step", ...options };
    this.legend = el("span", { class: "legend" });
    const name = `${this.options.title}: no values yet`;
    this.plot = el("div", { class: "plot", tabindex: "0", role: "img", "aria-label": name });
    this.values = el("details", null, el("summary", null, "Table"));
    this.values.addEventListener("toggle", () => this.fillTable());
    this.plot.addEventListener("keydown", (event) => this.key(event));
    const { title, unit, wide } = this.options;
    this.element = el(
      "figure",
      { class: wide ? "chart wide" : "chart" },
      el("figcaption", null, el("h3", null, title), unit && el("span", { class: "unit" }, unit), this.legend),
      this.plot,
      this.values,
    );
    new ResizeObserver(() => this.resize()).observe(this.plot);
    known.add(this);
  }

  // The chart is taken off the page for good.
  remove() {
    this.drawn?.destroy();
    this.drawn = undefined;
    known.delete(this);
  }

  update(x, values) {
    const before = this.x;
    this.x = x;
    this.series = this.options.series.filter((s) => values[s.name]?.mean.some((value) => value !== null));
    this.data = values;
    const signature = this.series.map((s) => `${s.name}${values[s.name].min ? "~" : ""}`).join();
    if (x.length === 0 || this.series.length === 0) this.nothing();
    else if (this.drawn && this.signature === signature) this.renew(before);
    else {
      this.signature = signature;
      this.redraw();
    }
    this.describe();
    if (this.values.open) this.fillTable();
  }

  // New values; what was zoomed in on stays where it is.
  renew(before) {
    const { min, max } = this.drawn.scales.x;
    const zoomed = before.length > 1 && (min > before[0] || max < before.at(-1));
    this.drawn.setData(this.columns());
    if (zoomed) this.drawn.setScale("x", { min, max });
  }

  nothing() {
    this.drawn?.destroy();
    this.drawn = undefined;
    this.signature = undefined;
    replace(this.plot, el("span", { class: "none" }, "No values yet"));
  }

  // What uPlot gets: for each series its smallest, largest and mean values, or the sums of a stack.
  columns() {
    const columns = [this.x];
    let below = this.x.map(() => 0);
    for (const s of this.series) {
      const { mean, min, max } = this.data[s.name];
      if (this.options.stacked) {
        below = below.map((sum, i) => sum + (mean[i] ?? 0));
        columns.push(below);
      } else {
        if (min) columns.push(min, max);
        columns.push(mean);
      }
    }
    return columns;
  }

  redraw() {
    if (!this.series?.length || !this.x?.length) return;
    this.drawn?.destroy();
    replace(this.plot);
    const { stacked, wide, format } = this.options;
    const series = [{}];
    const bands = [];
    for (const s of this.series) {
      const stroke = color(s.color);
      if (stacked) {
        if (series.length > 1) bands.push({ series: [series.length, series.length - 1], fill: color(s.color, 0.55) });
        series.push({ stroke, width: 1, fill: series.length === 1 ? color(s.color, 0.55) : undefined, points: { show: false } });
        continue;
      }
      if (this.data[s.name].min) {
        bands.push({ series: [series.length + 1, series.length], fill: color(s.color, 0.25) });
        series.push({ stroke: color(s.color, 0), points: { show: false } }, { stroke: color(s.color, 0), points: { show: false } });
      }
      series.push({ stroke, width: 1.5, spanGaps: true, points: { show: this.x.length < 3, size: 5 } });
    }
    const axis = { stroke: color("muted"), font: "11px system-ui", grid: { stroke: color("grid"), width: 1 }, ticks: { show: false } };
    const one = this.x.length === 1;
    this.drawn = new uPlot(
      {
        width: Math.max(this.plot.clientWidth, 50),
        height: wide ? WIDE_HEIGHT : HEIGHT,
        legend: { show: false },
        cursor: { sync: { key: "steps" }, drag: { x: true, y: false }, points: { size: 6 } },
        scales: {
          x: { time: false, range: one ? [this.x[0] - 1, this.x[0] + 1] : undefined },
          y: { range: (_, low, high) => bounds(low, high, stacked) },
        },
        axes: [
          { ...axis, size: 26, space: 60, values: (_, ticks) => ticks.map((t) => (Number.isInteger(t) && t >= 0 ? count(t) : "")) },
          { ...axis, size: 52, values: (_, ticks) => ticks.map((t) => tick(t, format)) },
        ],
        series,
        bands,
        hooks: { setCursor: [(u) => this.show(u.cursor.idx)] },
      },
      this.columns(),
      this.plot,
    );
    this.show(null);
  }

  resize() {
    const width = this.plot.clientWidth;
    if (this.drawn && width > 0 && width !== this.drawn.width) {
      this.drawn.setSize({ width, height: this.options.wide ? WIDE_HEIGHT : HEIGHT });
    }
  }

  // The legend with the values at a point; without one, those of the last point.
  show(at) {
    if (!this.series) return;
    const point = at ?? this.x.length - 1;
    const { format } = this.options;
    const entries = this.series.map((s) => {
      const swatch = el("i", { "aria-hidden": "true" });
      swatch.style.backgroundColor = `var(--${s.color})`;
      return el("span", null, this.series.length > 1 && swatch, this.series.length > 1 && `${s.label} `, el("b", null, format(this.data[s.name].mean[point])));
    });
    replace(this.legend, entries, at !== null && at !== undefined && el("span", null, `${this.options.xLabel} ${count(this.x[at])}`));
  }

  key(event) {
    if (!this.drawn || !["ArrowLeft", "ArrowRight", "Home", "End"].includes(event.key)) return;
    event.preventDefault();
    const last = this.x.length - 1;
    const now = this.drawn.cursor.idx ?? last;
    const to = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: last }[event.key];
    const at = Math.min(Math.max(to, 0), last);
    this.drawn.setCursor({ left: this.drawn.valToPos(this.x[at], "x"), top: this.drawn.over.clientHeight / 2 });
    this.describe(at);
  }

  describe(at) {
    this.show(at ?? null);
    const { title, unit, format } = this.options;
    const point = at ?? this.x.length - 1;
    const parts = (this.series ?? []).map((s) => `${s.label} ${format(this.data[s.name].mean[point])}`);
    const where = this.x.length ? ` at ${this.options.xLabel} ${count(this.x[point])}: ${parts.join(", ")}` : ": no values yet";
    this.plot.setAttribute("aria-label", `${title}${unit ? ` (${unit})` : ""}${where}. Arrow keys read other points.`);
  }

  fillTable() {
    const summary = this.values.querySelector("summary");
    if (!this.values.open || !this.series) return replace(this.values, summary);
    const columns = [{ title: this.options.xLabel, number: true, cell: (i) => count(this.x[i]) }];
    for (const s of this.series) {
      const { mean, min, max } = this.data[s.name];
      columns.push({ title: s.label, number: true, cell: (i) => this.options.format(mean[i]) });
      if (min && !this.options.stacked) {
        columns.push({ title: "least", number: true, cell: (i) => this.options.format(min[i]) });
        columns.push({ title: "most", number: true, cell: (i) => this.options.format(max[i]) });
      }
    }
    const rows = this.x.map((_, i) => this.x.length - 1 - i);
    replace(this.values, summary, table(`${this.options.title}, latest first`, columns, rows));
  }
}

function bounds(low, high, stacked) {
  if (low === null || low === undefined || high === null) return [0, 1];
  if (stacked) return [0, high > 0 ? high * 1.05 : 1];
  const margin = (high - low) * 0.08 || Math.abs(high) * 0.1 || 1;
  // A range that nearly begins at zero begins there.
  return [low >= 0 && low - margin < 0 ? 0 : low - margin, high + margin];
}

// Ticks are round numbers: short, and no two the same.
function tick(value, format) {
  if (format === percent) return `${Number((100 * value).toPrecision(4))} %`;
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return Number(value.toPrecision(3)).toExponential().replace("e+", "e");
  if (size >= 1000) return `${Number((value / 1000).toPrecision(4))}k`;
  return String(Number(value.toPrecision(6)));
}
