// Ranks, what they do, and what stalls.
import { get } from "../api.js";
import { el, empty, replace, section, table } from "../dom.js";
import { bytes, count, duration, NONE, timeOfDay } from "../format.js";

const COLUMNS = [
  { title: "Rank", number: true, cell: (r) => r.rank },
  { title: "Worker", cell: (r) => el("span", { class: "mono" }, r.worker) },
  { title: "Host", cell: (r) => r.host },
  { title: "Device", cell: (r) => el("span", { class: "mono" }, r.device) },
  { title: "State", cell: (r) => [el("span", { class: r.owes ? "badge warn" : "badge good" }, r.phase), ` ${duration(r.phase_ms / 1000)}`] },
  { title: "Slots in use", number: true, cell: (r) => `${count(r.slots_in_use)} / ${count(r.slots)}` },
  { title: "Tokens/s", number: true, cell: (r) => count(r.tokens_per_second) },
  { title: "Generated", number: true, cell: (r) => count(r.generated_tokens) },
  { title: "Last heard", number: true, cell: (r) => (r.silent_ms === null ? NONE : `${duration(r.silent_ms / 1000)} ago`) },
  { title: "Memory", number: true, cell: (r) => bytes(r.resident_bytes) },
  { title: "Device memory", number: true, cell: (r) => bytes(r.device_bytes) },
  { title: "Waited for", cell: (r) => el("span", { class: "wrap" }, r.owes ?? NONE) },
];

export class Ranks {
  constructor() {
    this.facts = el("dl", { class: "facts" });
    this.table = el("div", { class: "panel" });
    this.stalls = new Stalls();
    this.element = el("div", null, section("Ranks", null, this.table, this.facts), this.stalls.element);
  }

  show() {}
  leave() {
    this.stalls.leave();
  }

  state(state) {
    this.stalls.state(state);
    const { live } = state;
    if (!live) {
      replace(this.table, empty("No run goes on here, so there are no ranks."));
      return;
    }
    const caption = `Epoch ${live.epoch}${live.epoch_stands ? "" : ", being formed"}: ${live.ranks.length + live.more_ranks} ranks`;
    // A table that is being read stays in place.
    const scrolled = this.table.querySelector(".scroll")?.scrollLeft ?? 0;
    const focused = this.table.contains(document.activeElement);
    replace(this.table, live.ranks.length ? table(caption, COLUMNS, live.ranks) : empty(`No ranks yet: ${live.waiting_for}`));
    const region = this.table.querySelector(".scroll");
    if (region) region.scrollLeft = scrolled;
    if (focused) region?.focus({ preventScroll: true });
    const fact = (name, value) => el("div", null, el("dt", null, name), el("dd", null, value));
    replace(
      this.facts,
      live.more_ranks > 0 && fact("Not shown", count(live.more_ranks)),
      fact("Policy", `${count(live.policy_version)} optimizer steps`),
      fact("Free slots", count(live.free_slots)),
      fact("Rollouts leased", count(live.outstanding_rollouts)),
      fact("Waiting for a rank", count(live.queued_rollouts)),
      fact("Epochs that failed", count(live.epochs_failed)),
      fact("Rollouts done again", count(live.rollouts_redone)),
      fact("Without enough workers", duration(live.waiting_ms / 1000)),
      live.workers_without_rank.length > 0 && fact("Workers without a rank", live.workers_without_rank.join(", ")),
    );
  }
}

// Warnings of the log that are shown.
const WARNINGS = 10;

// What is waited for, what stalls, and what the coordinator warns of: /debug/stalls and /api/warnings for people.
export class Stalls {
  constructor() {
    this.body = el("div", null, el("p", { class: "muted" }, "Nothing was heard yet."));
    // Says aloud what is new, not how long it has lasted.
    this.spoken = el("p", { class: "spoken", role: "status" });
    this.log = el("div");
    this.logged = 0;
    this.element = section("Stalls and warnings", null, el("div", { class: "panel" }, this.body, this.log, this.spoken));
  }

  leave() {}

  async state({ live }) {
    if (!live) {
      this.element.hidden = true;
      return;
    }
    this.warnings(live.warnings);
    const warnings = [];
    if (live.epochs_failed > 0) warnings.push(`Epochs that ended before their work was done: ${count(live.epochs_failed)}; rollouts that were done again: ${count(live.rollouts_redone)}.`);
    if (live.disagreements > 0) warnings.push(`Ranks held different weights, gradients or policies ${count(live.disagreements)} times.`);
    if (!live.epoch_stands) warnings.push(`The ranks are not in place: ${live.waiting_for}`);
    let served = null;
    if (live.stalls > 0) {
      // Only then is it worth a question of its own.
      served = await get("/api/stalls").catch(() => null);
    }
    const report = served?.report;
    const lines = [
      ...(report?.stalls ?? []).map((s) => `${s.who} owes ${s.what}, and nothing has moved for ${duration(s.for_ms / 1000)}.`),
      ...(report?.judging_paused ? [`Answers are not judged: ${report.judging_paused}`] : []),
      ...warnings,
    ];
    const key = lines.map((line) => line.replaceAll(/\d+(\.\d+)? (s|min|h|d)/g, "")).join("\n");
    if (key !== this.key) replace(this.spoken, lines.join(" "));
    this.key = key;
    replace(
      this.body,
      lines.length
        ? el("ul", { class: "lines" }, lines.map((line) => el("li", null, line)))
        : el("p", { class: "muted" }, `Nothing stalls. ${live.during[0].toUpperCase()}${live.during.slice(1)}.`),
    );
  }

  // The newest lines, whenever there are more than before.
  async warnings(logged) {
    if (logged === this.logged) return;
    this.logged = logged;
    // Refused without the token: texts are read where the token is asked for.
    const all = await get("/api/warnings").catch(() => []);
    if (all.length === 0) return;
    const line = ({ at_ms, is_error, text }) =>
      el("li", null, el("span", { class: `badge ${is_error ? "bad" : "warn"}` }, is_error ? "error" : "warning"), ` ${timeOfDay(at_ms)} `, text);
    const newest = all.slice(-WARNINGS).reverse();
    const older = logged - newest.length;
    replace(
      this.log,
      el("h3", null, "From the log"),
      el("ul", { class: "lines log" }, newest.map(line)),
      older > 0 && el("p", { class: "muted" }, `${count(older)} older.`),
    );
  }
}
