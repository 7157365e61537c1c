// Numbers, sizes and names as people read them, in the browser's own language.

const whole = new Intl.NumberFormat();
const compact = new Intl.NumberFormat(undefined, { notation: "compact", maximumFractionDigits: 1 });

export const count = (n) => whole.format(n);
export const short = (n) => compact.format(n);
export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;
export const percent = (share, digits = 0) =>
  new Intl.NumberFormat(undefined, { style: "percent", maximumFractionDigits: digits }).format(share);
export const cosine = (value) => value.toFixed(3).replace("-", "−");

export function milliseconds(ms) {
  return ms < 10 ? `${ms.toFixed(1)} ms` : ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
}

export function bytes(size) {
  const units = ["bytes", "KB", "MB", "GB"];
  let unit = 0;
  let value = size;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit ? value.toFixed(value < 10 ? 1 : 0) : value} ${units[unit]}`;
}

/** 75.2 seconds as 1:15. */
export function duration(seconds) {
  const all = Math.max(0, Math.round(seconds));
  const two = (n) => String(n).padStart(2, "0");
  const [hours, minutes] = [Math.floor(all / 3600), Math.floor((all % 3600) / 60)];
  return hours ? `${hours}:${two(minutes)}:${two(all % 60)}` : `${minutes}:${two(all % 60)}`;
}

export function day(seconds) {
  return new Date(seconds * 1000).toLocaleDateString(undefined, { dateStyle: "medium" });
}

/** A value of an attribute. */
export function value(given) {
  if (given === null || given === undefined || given === "") return "none";
  if (given === true) return "yes";
  if (given === false) return "no";
  // A year is an integer too: no grouping below five digits.
  if (typeof given === "number") return Number.isInteger(given) && Math.abs(given) < 10000 ? String(given) : whole.format(given);
  return String(given);
}

/** The name of a view for people. */
export const viewName = (name) => ({ frozen: "Frozen", default: "Adapted", adapted: "Adapted" })[name] ?? name;

/** What an item is called: its first caption, or the name of its file. */
export const title = (hit) => hit.texts[0] ?? hit.name;
