// State of the run, learning curves, step time, stalls.
import { get } from "../api.js";
import { Chart } from "../charts.js";
import { evaluations, LEARNING, TIME } from "../curves.js";
import { el, failed, loading, replace, section } from "../dom.js";
import { count, duration, NONE, number, percent } from "../format.js";
import { Stalls } from "./ranks.js";

const tile = (title, value, sub, extra) =>
  el("div", { class: "tile" }, el("dt", null, title), el("dd", null, value, sub && el("p", { class: "sub" }, sub), extra));

function meter(share) {
  const fill = el("i");
  fill.style.width = `${Math.min(100 * share, 100)}%`;
  return el("span", { class: "meter", "aria-hidden": "true" }, fill);
}

export class Overview {
  constructor() {
    this.tiles = el("dl", { class: "tiles" });
    this.stalls = new Stalls();
    this.charts = [...LEARNING, ...TIME].map((options) => new Chart(options));
    const elements = this.charts.map((chart) => chart.element);
    this.evaluation = el("div", { class: "charts" });
    this.evaluationSection = section("Evaluation", "held-out problems, 95 % interval", this.evaluation);
    this.evaluationSection.hidden = true;
    this.note = el("div", null, loading("curves"));
    this.learning = section("Learning", null, el("div", { class: "charts" }, elements.slice(0, LEARNING.length)));
    this.time = section("Time", null, el("div", { class: "charts" }, elements.slice(LEARNING.length)));
    this.time.hidden = this.learning.hidden = true;
    this.element = el("div", null, section("Run", null, this.tiles), this.stalls.element, this.note, this.evaluationSection, this.learning, this.time);
  }

  show() {}

  leave() {
    this.abort?.abort();
    this.charts.forEach((chart) => chart.remove());
    this.evaluated?.remove();
  }

  state(state) {
    this.run = state;
    this.fillTiles();
    this.stalls.state(state);
    if (this.revision !== state.journal.revision && !this.busy) this.load(state.journal.revision);
  }

  async load(revision) {
    this.busy = true;
    this.abort = new AbortController();
    try {
      this.draw(await get("/api/curves", this.abort.signal));
      this.revision = revision;
      replace(this.note);
    } catch (error) {
      if (error.name !== "AbortError") replace(this.note, failed(error));
    } finally {
      this.busy = false;
    }
  }

  draw(curves) {
    this.curves = curves;
    this.time.hidden = this.learning.hidden = false;
    for (const chart of this.charts) chart.update(curves.steps, curves.series);
    const { x, values, series } = evaluations(curves.evaluations);
    this.evaluationSection.hidden = x.length === 0;
    const names = series.map((s) => s.name).join();
    if (x.length && names !== this.evaluatedNames) {
      this.evaluated?.remove();
      this.evaluatedNames = names;
      this.evaluated = new Chart({ title: "Scores", unit: "share of problems", format: percent, wide: true, series });
      replace(this.evaluation, this.evaluated.element);
    }
    if (x.length) this.evaluated.update(x, values);
    this.fillTiles();
  }

  fillTiles() {
    const { run, curves } = this;
    if (!run) return;
    const last = (name) => curves?.series[name].mean.at(-1);
    const latest = curves?.evaluations.filter((e) => e.step === curves.evaluations.at(-1).step);
    const evaluated = latest?.find((e) => e.score === "pass@1") ?? latest?.[0];
    replace(
      this.tiles,
      tile("Step", [count(run.steps_done), el("small", null, ` of ${count(run.steps)}`)], null, meter(run.steps_done / Math.max(run.steps, 1))),
      tile("Time left", duration(run.time_left_s), run.seconds_per_step && `${duration(run.seconds_per_step)} per step`),
      tile("Phase", run.live?.phase ?? "not running", run.live ? `for ${duration(run.live.phase_ms / 1000)}` : null),
      tile("Reward", number(last("reward")), "last point of the curve"),
      tile("Right answers", percent(last("correct")), evaluated ? `held out ${evaluated.score} ${percent(evaluated.mean)}` : "of training rollouts"),
      tile("Response length", number(last("response_length")), "tokens"),
      tile("Tokens per second", count(last("tokens_per_second")), run.live ? `${run.live.ranks.length + run.live.more_ranks} ranks` : NONE),
    );
  }
}
