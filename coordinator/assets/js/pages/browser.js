// Groups: filters, a list by pages, one group beside it. The address says what is open: #/groups/17?filter=truncated
import { get, setToken } from "../api.js";
import { el, empty, failed, loading, replace, section } from "../dom.js";
import { count, fixed } from "../format.js";
import { groupCard } from "../groups.js";

const FILTERS = [
  ["all", "All groups"],
  ["wrong_novel", "Wrong but novel"],
  ["right_redundant", "Right but redundant"],
  ["truncated", "Cut off at the length limit"],
  ["mixed", "Right and wrong"],
  ["all_right", "All right"],
  ["all_wrong", "All wrong"],
  ["skipped", "Left out of the update"],
];

// Groups of a page, as the API has it.
const PAGE = 20;

// Does what needs texts; asks for the token where it is needed.
export async function withTexts(place, act) {
  try {
    await act();
  } catch (error) {
    if (error.name === "AbortError") return;
    if (error.status !== 401) {
      replace(place, failed(error));
      return;
    }
    const input = el("input", { type: "password", autocomplete: "off", required: true });
    const form = el(
      "form",
      { class: "panel filters" },
      el("p", null, "Prompts, responses and the configuration need the run's token (security.token_file). It stays in this tab."),
      el("label", { class: "grow" }, "Token", input),
      el("button", { type: "submit" }, "Show"),
    );
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      setToken(input.value.trim());
      withTexts(place, act);
    });
    replace(place, form);
  }
}

export class Browser {
  constructor() {
    const options = FILTERS.map(([value, label]) => el("option", { value }, label));
    this.filter = el("select", { name: "filter" }, options);
    this.search = el("input", { type: "search", name: "search", maxlength: "200", placeholder: "part of a prompt or response, problem id" });
    this.from = el("input", { type: "number", name: "from", min: "1", inputmode: "numeric" });
    this.to = el("input", { type: "number", name: "to", min: "1", inputmode: "numeric" });
    this.form = el(
      "form",
      { class: "filters", role: "search", "aria-label": "Groups" },
      el("label", null, "Show", this.filter),
      el("label", { class: "grow" }, "Search", this.search),
      el("label", null, "From step", this.from),
      el("label", null, "To step", this.to),
      el("button", { type: "submit" }, "Apply"),
    );
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.first();
    });
    this.filter.addEventListener("change", () => this.first());
    this.found = el("div", { class: "found" }, loading("groups"));
    this.opened = el("div", { class: "opened" }, empty("Choose a group."));
    this.browser = el("div", { class: "browser" }, this.found, this.opened);
    this.element = section("Groups", "newest first; j and k open the next and the one before", this.form, this.browser);
    this.cursors = [null];
    this.keys = (event) => this.key(event);
    document.addEventListener("keydown", this.keys);
  }

  leave() {
    this.abort?.abort();
    document.removeEventListener("keydown", this.keys);
  }

  state(state) {
    const { revision } = state.journal;
    const news = this.revision !== undefined && revision !== this.revision;
    this.revision = revision;
    // The first page without a search follows the run; whoever reads further back is left alone.
    if (news && this.page && this.cursors.length === 1 && !this.search.value && !this.busy) this.load(true);
  }

  show([group]) {
    if (!this.page) this.load();
    this.open(group ? Number(group) : null);
  }

  first() {
    this.cursors = [null];
    this.load();
  }

  async load(quietly = false) {
    this.abort?.abort();
    const abort = (this.abort = new AbortController());
    const query = new URLSearchParams({ filter: this.filter.value });
    if (this.search.value.trim()) query.set("search", this.search.value.trim());
    if (this.from.value) query.set("from", this.from.value);
    if (this.to.value) query.set("to", this.to.value);
    const cursor = this.cursors.at(-1);
    if (cursor) query.set("cursor", cursor);
    if (!quietly) replace(this.found, loading("groups"));
    this.busy = true;
    await withTexts(this.found, async () => {
      // A search that runs out of time goes on by itself until the page is full, and shows what it has.
      let found = [];
      do {
        const page = await get(`/api/groups?${query}`, abort.signal);
        found = [...found, ...page.groups];
        this.page = { ...page, groups: found };
        this.list(Boolean(page.searched_to) && found.length < PAGE);
        query.set("cursor", page.next ?? "");
      } while (this.page.searched_to && found.length < PAGE);
    });
    if (abort === this.abort) this.busy = false;
  }

  list(searching) {
    const { page } = this;
    const focused = this.found.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    const items = page.groups.map((group) => el("li", null, this.item(group)));
    const more = searching ? `Searching; step ${count(page.searched_to)} …` : null;
    const total = page.total === null ? `${count(page.groups.length)} found${page.next ? " so far" : ""}` : `${count(page.total)} groups`;
    const stop = searching && el("button", { type: "button", onclick: () => this.stop() }, "Stop");
    replace(
      this.found,
      el("div", { class: "pager" },
        el("p", { role: searching ? null : "status" }, total, more && ` ${more}`, page.left_out > 0 && ` ${count(page.left_out)} older ones are not in the index.`), stop),
      items.length ? el("ol", { class: "list" }, items) : empty(page.next ? "Nothing found yet." : "No group is like this."),
      el(
        "div",
        { class: "pager" },
        el("button", { type: "button", disabled: this.cursors.length === 1, onclick: () => this.turn(-1) }, "Newer"),
        el("button", { type: "button", disabled: !page.next, onclick: () => this.turn(1) }, page.searched_to ? "Search further" : "Older"),
        el("span", { class: "muted" }, `page ${this.cursors.length}`),
      ),
    );
    if (focused) [...this.found.querySelectorAll("a")].find((a) => a.getAttribute("href") === focused)?.focus({ preventScroll: true });
    this.mark();
  }

  item(group) {
    const tags = [
      group.wrong_novelty !== null && group.wrong_novelty >= 0.8 && "wrong but novel",
      group.right_novelty !== null && group.right_novelty <= 0.2 && "right but redundant",
      group.truncated > 0 && `${group.truncated} cut off`,
      group.skipped && "left out",
    ].filter(Boolean);
    return el(
      "a",
      { class: "item", href: `#/groups/${group.group}`, "data-group": group.group },
      el("span", { class: "line" },
        el("b", null, `Group ${group.group}`),
        el("span", { class: "muted" }, `step ${count(group.step)}`)),
      el("p", null, group.prompt ?? `Problem ${group.problem ?? "unknown"}`),
      el("span", { class: "tags" },
        el("span", { class: `badge ${group.right === 0 ? "bad" : group.right === group.size ? "good" : ""}` }, `${group.right} of ${group.size} right`),
        group.mean_cosine !== null && el("span", { class: "badge" }, `cosine ${fixed(group.mean_cosine, 2)}`),
        tags.map((tag) => el("span", { class: "badge warn" }, tag))),
    );
  }

  stop() {
    this.abort.abort();
    this.list();
  }

  turn(by) {
    if (by > 0) this.cursors.push(this.page.next);
    else this.cursors.pop();
    this.load();
  }

  async open(group) {
    if (group === this.group) return;
    this.group = group;
    this.mark();
    this.browser.classList.toggle("open", group !== null);
    this.element.classList.toggle("groups-open", group !== null);
    if (group === null) {
      replace(this.opened, empty("Choose a group."));
      return;
    }
    replace(this.opened, loading(`group ${group}`));
    await withTexts(this.opened, async () => {
      const detail = await get(`/api/groups/${group}`);
      if (group !== this.group) return;
      const loadText = (rollout) => get(`/api/groups/${group}/${rollout.index}/text`);
      const back = el("p", { class: "back" }, el("a", { href: "#/groups" }, "← All groups"));
      replace(this.opened, back, groupCard(detail, { loadText }));
      if (!this.found.contains(document.activeElement)) this.opened.querySelector("#group-title").focus({ preventScroll: true });
    });
  }

  mark() {
    for (const link of this.found.querySelectorAll("a.item")) {
      if (Number(link.dataset.group) === this.group) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select, textarea")) return;
    if (event.key === "/") {
      event.preventDefault();
      this.search.focus();
    }
    const by = { j: 1, k: -1 }[event.key];
    if (!by || !this.page?.groups.length) return;
    const at = this.page.groups.findIndex((g) => g.group === this.group);
    const next = this.page.groups[at < 0 ? 0 : at + by];
    if (!next) return;
    location.hash = `#/groups/${next.group}`;
    this.found.querySelector(`[data-group="${next.group}"]`)?.scrollIntoView({ block: "nearest" });
  }
}
