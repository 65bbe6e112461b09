// The exploration geometry: cosines over time, pair rates, novelty against correctness.
import { get } from "../api.js";
import { Chart } from "../charts.js";
import { PAIRS } from "../curves.js";
import { el, failed, loading, replace, section, table } from "../dom.js";
import { count, fixed, percent } from "../format.js";
import { CosineMap } from "../heatmap.js";

export class Geometry {
  constructor() {
    this.map = new CosineMap({ title: "Gradient cosines over time", unit: "share of the pairs inside groups, by cosine" });
    this.charts = PAIRS.map((options) => new Chart(options));
    this.novelty = el("div", { class: "panel" });
    this.note = el("div", null, loading("the geometry"));
    this.body = el(
      "div",
      { hidden: true },
      section("Cosines", null, el("div", { class: "charts" }, this.map.element)),
      section("Pairs and novelty", null, el("div", { class: "charts" }, this.charts.map((chart) => chart.element))),
      section("Distribution of novelty", "all steps that the index has", this.novelty),
    );
    this.element = el("div", null, this.note, this.body);
  }

  show() {}

  leave() {
    this.abort?.abort();
    this.map.remove();
    this.charts.forEach((chart) => chart.remove());
  }

  state(state) {
    if (this.revision !== state.journal.revision && !this.busy) this.load(state.journal.revision);
  }

  async load(revision) {
    this.busy = true;
    this.abort = new AbortController();
    try {
      const { signal } = this.abort;
      const [geometry, curves] = await Promise.all([get("/api/geometry", signal), get("/api/curves", signal)]);
      this.body.hidden = false;
      this.map.update(geometry.steps, geometry.cosines);
      this.charts.forEach((chart) => chart.update(curves.steps, curves.series));
      this.fillNovelty(geometry);
      this.revision = revision;
      replace(this.note);
    } catch (error) {
      if (error.name !== "AbortError") replace(this.note, failed(error));
    } finally {
      this.busy = false;
    }
  }

  fillNovelty({ novelty_right: right, novelty_wrong: wrong }) {
    const sum = (bins) => bins.reduce((all, n) => all + n, 0);
    const [rights, wrongs] = [sum(right), sum(wrong)];
    if (rights + wrongs === 0) {
      replace(this.novelty, el("p", { class: "muted" }, "No novelty yet."));
      return;
    }
    const most = Math.max(...right.map((n) => n / (rights || 1)), ...wrong.map((n) => n / (wrongs || 1)));
    const bar = (share, series) => {
      const fill = el("i");
      fill.style.width = `${(100 * share) / most}%`;
      fill.style.backgroundColor = `var(--${series})`;
      return el("span", { class: "bar", "aria-hidden": "true" }, fill);
    };
    // The most novel first; empty ends are left out.
    const used = right.map((_, i) => i).filter((i) => right[i] + wrong[i] > 0);
    const rows = right.map((_, i) => i).slice(used[0], used.at(-1) + 1).reverse();
    const cell = (n, all, series) => [el("span", { class: "share" }, percent(n / (all || 1))), bar(n / (all || 1), series)];
    replace(
      this.novelty,
      table(
        `${count(rights)} right and ${count(wrongs)} wrong rollouts by novelty`,
        [
          { title: "novelty", cell: (i) => `${fixed(i / right.length, 2)} to ${fixed((i + 1) / right.length, 2)}` },
          { title: "right", cell: (i) => cell(right[i], rights, "series-3") },
          { title: "wrong", cell: (i) => cell(wrong[i], wrongs, "series-2") },
        ],
        rows,
        "dense",
      ),
    );
  }
}
