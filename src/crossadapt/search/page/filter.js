// From ticked boxes and ranges to the filter expression the server reads.

const WORDS = new Set(["and", "or", "not", "in", "like", "is", "null", "true", "false"]);

/** A column as the filter language wants it. */
export function column(name) {
  const plain = /^[A-Za-z_][\w.-]*$/.test(name) && !WORDS.has(name.toLowerCase());
  return plain ? name : `\`${name}\``;
}

function literal(value) {
  return typeof value === "string" ? `"${value.replaceAll('"', '""')}"` : String(value);
}

/** One of several values of a column; null stands for "has none". */
export function among(name, values) {
  const named = column(name);
  const real = values.filter((value) => value !== null);
  const parts = [];
  if (real.length === 1 || typeof real[0] === "boolean") parts.push(...real.map((value) => `${named} = ${literal(value)}`));
  else if (real.length) parts.push(`${named} in (${real.map(literal).join(", ")})`);
  if (real.length < values.length) parts.push(`${named} is null`);
  return parts.length > 1 ? `(${parts.join(" or ")})` : parts[0];
}

/** A number between two ends, either of which may be missing. */
export function between(name, [low, high]) {
  const parts = [];
  if (low !== null) parts.push(`${column(name)} >= ${low}`);
  if (high !== null) parts.push(`${column(name)} <= ${high}`);
  return parts.join(" and ");
}

/** Everything that is filtered by, as one expression. `without`: a facet to leave out. */
export function expression(state, without = null) {
  const parts = [];
  for (const [name, values] of Object.entries(state.facets)) {
    if (name !== without && values.length) parts.push(among(name, values));
  }
  for (const [name, ends] of Object.entries(state.ranges)) parts.push(between(name, ends));
  if (state.expression.trim()) parts.push(parts.length ? `(${state.expression.trim()})` : state.expression.trim());
  return parts.join(" and ");
}

/** How many filters are in use. */
export const filtersInUse = (state) =>
  Object.values(state.facets).reduce((sum, values) => sum + values.length, 0) +
  Object.keys(state.ranges).length + Number(state.expression.trim() !== "");
