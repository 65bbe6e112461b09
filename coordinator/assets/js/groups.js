// The card of a group: its prompt, its responses side by side, their cosines. All texts are text nodes.
import { el } from "./dom.js";
import { count, fixed, NONE, signed } from "./format.js";
import { cosineMatrix } from "./heatmap.js";

const FINISH = { end_token: "ended", stop_string: "stop string", length: "cut off" };

const fact = (name, value) => el("div", null, el("dt", null, name), el("dd", null, value));

// The novelty that makes a response remarkable, as the filters have it.
const NOVEL = 0.8;

export function verdict(rollout) {
  if (rollout.correct === null) return el("span", { class: "badge" }, "not judged");
  return rollout.correct
    ? el("span", { class: "badge good" }, "✓ right")
    : el("span", { class: "badge bad" }, "✗ wrong");
}

// `loadText(rollout)` fetches a text that was shortened; without it the card says only that it is.
export function groupCard(group, { loadText } = {}) {
  const right = group.rollouts.filter((r) => r.correct).length;
  const facts = el(
    "dl",
    { class: "facts" },
    fact("Step", count(group.step)),
    fact("Problem", el("span", { class: "mono" }, group.problem ?? NONE)),
    fact("Right", `${right} of ${group.rollouts.length}`),
    fact("Mean cosine", fixed(group.mean_cosine)),
    fact("Answer", el("span", { class: "mono" }, group.answer || NONE)),
  );
  return el(
    "article",
    { class: "card", "aria-labelledby": "group-title" },
    el(
      "div",
      { class: "panel prompt" },
      el(
        "div",
        { class: "heading" },
        el("h2", { id: "group-title", tabindex: "-1" }, `Group ${group.group}`),
        group.equal_rewards && el("span", { class: "badge warn" }, "equal rewards"),
        group.skipped && el("span", { class: "badge warn" }, "left out of the update"),
      ),
      el("p", { class: "text" }, group.prompt ?? "The prompt is not known here."),
      facts,
    ),
    el("section", { "aria-labelledby": "responses-title" },
      el("div", { class: "heading" }, el("h3", { id: "responses-title" }, "Responses")),
      el("div", { class: "responses", tabindex: "0", role: "region", "aria-labelledby": "responses-title" },
        group.rollouts.map((rollout) => response(rollout, loadText))),
    ),
    el("section", { class: "panel", "aria-labelledby": "cosines-title" },
      el("div", { class: "heading" }, el("h3", { id: "cosines-title" }, "How the responses lie to each other")),
      group.cosine ? cosineMatrix(group.cosine) : el("p", { class: "muted" }, "The journal has no cosines of this group."),
    ),
  );
}

function response(rollout, loadText) {
  const remark =
    rollout.correct === false && rollout.novelty_in_group >= NOVEL
      ? "wrong but novel"
      : rollout.correct && rollout.novelty_in_group !== null && rollout.novelty_in_group <= 1 - NOVEL
        ? "right but redundant"
        : null;
  const text = el("pre", { class: "text", tabindex: "0", "aria-label": `Response ${rollout.index}` }, rollout.text || "(empty)");
  const more = rollout.whole_text && loadText &&
    el("button", { type: "button", onclick: (event) => showWhole(event.currentTarget, text, () => loadText(rollout)) }, `Show all ${count(rollout.whole_text)} characters`);
  const number = (name, value, title) => el("div", { title }, el("dt", null, name), el("dd", null, value));
  return el(
    "article",
    { class: `response ${rollout.correct ? "is-right" : rollout.correct === false ? "is-wrong" : ""}` },
    el(
      "header",
      null,
      el("div", { class: "line" }, el("h4", null, `Response ${rollout.index}`), verdict(rollout)),
      el(
        "dl",
        { class: "numbers" },
        number("Reward", signed(rollout.reward, 2), "base reward"),
        number("Shaped", signed(rollout.shaped_reward, 2), "reward after shaping"),
        number("Advantage", signed(rollout.advantage, 2)),
        number("Novelty", fixed(rollout.novelty), "score, 0 to 1"),
        number("In group", fixed(rollout.novelty_in_group, 2), "0: the group's least novel response, 1: its most novel"),
        number("Entropy", fixed(rollout.entropy, 2), "nats/token"),
      ),
      el(
        "div",
        { class: "tags" },
        el("span", { class: rollout.finish_reason === "length" ? "badge warn" : "badge" }, FINISH[rollout.finish_reason] ?? rollout.finish_reason ?? NONE),
        el("span", { class: "badge" }, `${count(rollout.tokens)} tokens`),
        remark && el("span", { class: "badge warn" }, remark),
      ),
    ),
    text,
    more,
    el("footer", null, "Extracted: ", el("span", { class: "mono" }, rollout.extracted ?? NONE), rollout.reason && ` · ${rollout.reason}`),
  );
}

async function showWhole(button, text, load) {
  button.disabled = true;
  try {
    text.textContent = await load();
    button.remove();
  } catch (error) {
    button.disabled = false;
    button.textContent = `${error.message} Try again`;
  }
}
