// Requests to the server: keys, errors in words, one retry when the server is busy, events as they come.

const ROOT = new URL("..", import.meta.url); // the page may live below a path of a proxy
const KEY = "twofold-key";
const LONGEST_WAIT = 30; // seconds; who is told to wait longer decides for himself

/** What the server (or the way to it) said: where, what and hint, as in {"error": {...}}; status 0 = no answer. */
export class ApiError extends Error {
  constructor({ where = "", what = "", hint = "", message = "" }, status = 0) {
    super([[where, what].filter(Boolean).join(": ") || message, hint].filter(Boolean).join("; "));
    Object.assign(this, { where, what, hint, status });
  }
}

export const getKey = () => sessionStorage.getItem(KEY) ?? "";
export const setKey = (key) => (key ? sessionStorage.setItem(KEY, key) : sessionStorage.removeItem(KEY));
export const address = (path) => new URL(path, ROOT).href;
export const pathOf = (model, verb) => `v1/models/${encodeURIComponent(model.name)}/${verb}`;

/**
 * The response of `path` once it is a good one; otherwise throws an ApiError.
 * json: body as an object. form: body as FormData. accept: wanted type. say(text): told when a retry is waited for.
 */
export async function request(path, { json, form, accept = "application/json", signal, say = () => {} } = {}) {
  const headers = { Accept: accept };
  if (getKey()) headers["X-API-Key"] = getKey();
  if (json) headers["Content-Type"] = "application/json";
  const body = json ? JSON.stringify(json) : form;
  const ask = () => reached(address(path), { method: body ? "POST" : "GET", headers, body, signal });
  let response = await ask();
  const wait = Number(response.headers.get("Retry-After"));
  if ((response.status === 503 || response.status === 429) && wait > 0 && wait <= LONGEST_WAIT) {
    say(`The server is busy. Trying once more in ${wait} s ...`);
    await pause(wait, signal);
    response = await ask();
  }
  if (!response.ok) throw await errorOf(response);
  return response;
}

/** What stands in the answer to a request for JSON. */
export async function getJson(path, options) {
  return (await request(path, options)).json();
}

/** Events of a text/event-stream response, as {event, data} with data parsed; an "error" event is thrown. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (rest + value).replaceAll("\r\n", "\n").split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const event = parsed(block);
      if (event?.event === "error") throw new ApiError(event.data.error ?? {}, 500);
      if (event) yield event;
    }
  }
}

function parsed(block) {
  const values = (name) =>
    block.split("\n").filter((line) => line.startsWith(`${name}:`)).map((line) => line.slice(name.length + 1).trim());
  const data = values("data").join("\n");
  return data ? { event: values("event")[0] ?? "message", data: JSON.parse(data) } : null;
}

async function reached(url, options) {
  try {
    return await fetch(url, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError({ where: "server", what: "no answer", hint: "is it still running, and this machine online?" });
  }
}

async function errorOf(response) {
  const body = await response.json().catch(() => ({}));
  const fallback = { where: "server", what: `answered ${response.status} ${response.statusText}`.trim() };
  return new ApiError(body.error ?? fallback, response.status);
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("no longer wanted", "AbortError"));
    });
  });
}
