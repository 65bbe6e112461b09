// Numbers for people. What is not there is a dash.

export const NONE = "–";

const absent = (value) => value === null || value === undefined || !Number.isFinite(value);

// Three or four digits that matter.
export function number(value) {
  if (absent(value)) return NONE;
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1e6 || size < 1e-3) return value.toExponential(2).replace("e+", "e");
  if (size >= 100) return value.toLocaleString("en", { maximumFractionDigits: size >= 1000 ? 0 : 1 });
  return value.toLocaleString("en", { minimumFractionDigits: 2, maximumFractionDigits: size < 1 ? 4 : 3 });
}

// The same width for all, for columns.
export const fixed = (value, digits = 3) => (absent(value) ? NONE : value.toFixed(digits));

export const signed = (value, digits = 3) => (absent(value) ? NONE : (value > 0 ? "+" : "") + value.toFixed(digits));

export const count = (value) => (absent(value) ? NONE : Math.round(value).toLocaleString("en"));

export const percent = (value) => (absent(value) ? NONE : `${(100 * value).toFixed(1)} %`);

export function bytes(value) {
  if (absent(value) || value === 0) return NONE;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const at = Math.min(Math.floor(Math.log2(value) / 10), units.length - 1);
  return `${(value / 1024 ** at).toFixed(at > 2 ? 1 : 0)} ${units[at]}`;
}

export function duration(seconds) {
  if (absent(seconds)) return NONE;
  if (seconds < 1) return `${Math.round(1000 * seconds)} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  const s = Math.round(seconds);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

// Local.
export const timeOfDay = (ms) => new Date(ms).toLocaleTimeString("en-GB");
