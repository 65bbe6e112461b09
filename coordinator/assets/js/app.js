// The live page: follows the run's state, shows one page at a time.
import { follow, get } from "./api.js";
import { el, failed, replace } from "./dom.js";
import { count, duration } from "./format.js";
import { Browser } from "./pages/browser.js";
import { Config } from "./pages/config.js";
import { Geometry } from "./pages/geometry.js";
import { Overview } from "./pages/overview.js";
import { Ranks } from "./pages/ranks.js";

const PAGES = { overview: Overview, geometry: Geometry, groups: Browser, ranks: Ranks, config: Config };
const by = (id) => document.getElementById(id);
const main = by("main");

let state = null;
let page = null;
let name = null;

// A page has: element, show(rest of the address), state(run state), leave().
function navigate() {
  const [, wanted, ...rest] = location.hash.split("/");
  const next = PAGES[wanted] ? wanted : "overview";
  if (next !== name) {
    page?.leave();
    name = next;
    page = new PAGES[next]();
    replace(main, page.element);
    for (const link of document.querySelectorAll("nav a")) {
      if (link.getAttribute("href") === `#/${next}`) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    const title = next[0].toUpperCase() + next.slice(1);
    document.title = `${title} · ${state?.name ?? "g2rl"}`;
    if (state) page.state(state);
  }
  page.show(rest);
}

function setText(id, text) {
  if (by(id).textContent !== text) by(id).textContent = text;
}

function show(next) {
  state = next;
  const { live, journal } = state;
  setText("run-name", state.name);
  setText("run-facts", `${state.algorithm} · ${state.prompts_per_step} × ${state.group_size} rollouts per step`);
  const badge = by("phase");
  const stalled = live?.stalls > 0;
  setText("phase", live ? (stalled ? `stalled: ${live.phase}` : live.phase) : "not running");
  badge.className = `badge ${stalled ? "bad" : live?.epoch_stands ? "good" : live ? "warn" : ""}`;
  const left = state.time_left_s === null ? "" : ` · ${duration(state.time_left_s)} left`;
  const whole = journal.complete ? "" : " · still reading the journal";
  setText("journal-facts", `${count(journal.steps)} steps and ${count(journal.groups)} groups in the journal${left}${whole}`);
  notice(journal.error ? `The journal cannot be read: ${journal.error}` : null);
  page?.state(state);
}

function notice(text) {
  by("notice").hidden = !text;
  setText("notice", text ?? "");
}

addEventListener("hashchange", () => {
  const before = name;
  navigate();
  if (before !== name) main.focus({ preventScroll: true });
  if (before !== name) scrollTo(0, 0);
});

document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});

// The first state is asked for, so that an error is seen as one.
try {
  show(await get("/api/run"));
} catch (error) {
  replace(main, el("div", null, failed(error)));
}
navigate();
follow(show, () => {
  notice("The coordinator does not answer: the run is over, or the connection is lost. What is shown is the last that was heard.");
});
