// Every request goes through here: token, waiting when the server is busy, errors in one shape.

const KEY = "crossadapt-token";
const TRIES = 5;
let token = "";
try {
  // Of this tab only: a token in localStorage would outlive the visit.
  token = sessionStorage.getItem(KEY) ?? "";
} catch {
  // Storage can be switched off; the token is then asked for on every load.
}
let ask = async () => null;
let asking = null;

/** An answer that is no success: what, where, fix, as the server says them. */
export class Failed extends Error {
  constructor(status, error) {
    super(error.what);
    Object.assign(this, { status, what: error.what, where: error.where ?? "", fix: error.fix ?? "" });
  }
}

/** There was no answer at all. */
export class Gone extends Error {}

/** Who asks the visitor for a token: async (wrong) => token or null. */
export function onToken(asker) {
  ask = asker;
}

export const hasToken = () => token !== "";

/** Headers for requests that are not made here, such as those for pictures. */
export const authorised = () => (token ? { Authorization: `Bearer ${token}` } : {});

/**
 * JSON from a path.
 * options: signal, body (FormData: then it is a POST), waiting(seconds) while the server is busy.
 */
export async function get(path, { signal, body, waiting = () => {} } = {}) {
  for (let tries = 1; ; tries += 1) {
    const response = await send(path, signal, body);
    if (response.ok) return response.json();
    const failure = await failed(response);
    if (response.status === 401) {
      if (!(await newToken())) throw failure;
      tries = 0;
      continue;
    }
    if (response.status !== 429 || tries >= TRIES) throw failure;
    const seconds = Math.min(60, Number(response.headers.get("Retry-After")) || 1);
    for (let left = seconds; left > 0; left -= 1) {
      waiting(left);
      await pause(Math.min(1, left) * 1000, signal);
    }
    waiting(0);
  }
}

async function send(path, signal, body) {
  try {
    return await fetch(path, { signal, body, method: body ? "POST" : "GET", headers: authorised() });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Gone("the server does not answer", { cause: error });
  }
}

async function failed(response) {
  try {
    const { error } = await response.json();
    if (error?.what) return new Failed(response.status, error);
  } catch {
    // Something between here and the server answered, in its own words.
  }
  const fix = "try again; if it stays, look at the server's log";
  return new Failed(response.status, { what: `the server answered ${response.status} ${response.statusText}`.trim(), fix });
}

/** Ask once, also when several requests were refused at the same time. */
async function newToken() {
  asking ??= ask(token !== "").finally(() => {
    asking = null;
  });
  const given = await asking;
  if (!given) return false;
  token = given;
  try {
    sessionStorage.setItem(KEY, token);
  } catch {
    // See above.
  }
  return true;
}

export function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(new DOMException("stopped", "AbortError"));
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, milliseconds);
    if (signal?.aborted) stop();
    else signal?.addEventListener("abort", stop, { once: true });
  });
}

/** Whether the server answers at all. */
export async function alive() {
  try {
    return (await fetch("/health", { cache: "no-store" })).ok;
  } catch {
    return false;
  }
}
