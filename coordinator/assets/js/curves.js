// Which curves a run has, in what order and with which words. The same for a live page and for a report.
import { count, duration, number, percent } from "./format.js";

const one = (name, title, unit, format, color = "series-1") => ({
  title,
  unit,
  format,
  series: [{ name, label: title.toLowerCase(), color }],
});

export const LEARNING = [
  one("reward", "Reward", "mean base reward", number),
  one("correct", "Right answers", "share of rollouts", percent, "series-3"),
  one("response_length", "Response length", "tokens", number),
  one("entropy", "Entropy", "nats/token", number, "series-4"),
  one("kl", "KL to the reference", "nats/token", number, "series-2"),
  one("gradient_norm", "Gradient norm", "before clipping", number),
  one("loss", "Loss", "sum of the mini-batches", number),
  one("learning_rate", "Learning rate", "", number, "series-6"),
  one("clip_fraction", "Clipped tokens", "share", percent, "series-5"),
  one("drift_mean", "Sampler and update", "nats apart per token", number, "series-2"),
  one("score", "Score", "mean of the answers, 0 to 1", number, "series-3"),
  one("tokens_per_second", "Tokens per second", "while rollouts run", count),
];

export const TIME = [
  {
    title: "Step time",
    unit: "seconds",
    format: duration,
    stacked: true,
    wide: true,
    series: [
      { name: "rollout_seconds", label: "rollout", color: "series-1" },
      { name: "reward_seconds", label: "reward", color: "series-5" },
      { name: "shaping_seconds", label: "shaping", color: "series-2" },
      { name: "update_seconds", label: "update", color: "series-3" },
      { name: "wait_seconds", label: "wait, evaluation, checkpoint", color: "series-6" },
    ],
  },
];

export const PAIRS = [
  {
    title: "Orthogonal and negative pairs",
    unit: "share of pairs inside groups",
    format: percent,
    series: [
      { name: "orthogonal_pairs", label: "orthogonal, |cosine| < 0.1", color: "series-1" },
      { name: "negative_pairs", label: "negative", color: "series-2" },
      { name: "duplicate_pairs", label: "identical responses", color: "series-6" },
    ],
  },
  {
    title: "Mean cosine",
    unit: "of pairs inside groups",
    format: number,
    series: [
      { name: "mean_cosine", label: "all pairs", color: "series-1" },
      { name: "mean_cosine_distinct", label: "without identical responses", color: "series-4" },
    ],
  },
  {
    title: "Novelty against correctness",
    unit: "mean novelty, 0 to 1",
    format: number,
    series: [
      { name: "novelty_right", label: "right", color: "series-3" },
      { name: "novelty_wrong", label: "wrong", color: "series-2" },
    ],
  },
  one("equal_reward_groups", "Groups of equal rewards", "groups per step", count, "series-6"),
];

// Scores of evaluations as a chart's values: { x, values, series }. Lengths and counts of answers are no shares.
export function evaluations(all) {
  const rows = all.filter((row) => row.score.includes("@"));
  const x = [...new Set(rows.map((row) => row.step))].sort((a, b) => a - b);
  const names = [...new Set(rows.map((row) => row.score))];
  const values = {};
  for (const name of names) {
    const of = new Map(rows.filter((row) => row.score === name).map((row) => [row.step, row]));
    const part = (key) => x.map((step) => of.get(step)?.[key] ?? null);
    values[name] = { mean: part("mean"), min: part("low"), max: part("high") };
  }
  const series = names.map((name, i) => ({ name, label: name, color: `series-${(i % 6) + 1}` }));
  return { x, values, series };
}
