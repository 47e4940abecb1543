// How does the page talk to the server? JSON, one sentence for every error, and never two requests of a kind at once.

let key = "";
export function setKey(value) {
  key = value;
}

export class Fault extends Error {
  constructor(sentence, status) {
    super(sentence);
    this.status = status;
  }
}

async function answer(path, options = {}) {
  const headers = key ? { ...options.headers, Authorization: `Bearer ${key}` } : options.headers;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch {
    throw new Fault("The server does not answer: is it still running?", 0);
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => ({}));
  throw new Fault(told.error ?? `The server answered with status ${response.status}.`, response.status);
}

export const models = async () => (await (await answer("/v1/models")).json()).models;

export function send(path, body) {
  return answer(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
}

export const post = async (path, body) => (await send(path, body)).json();

// Work of one kind: while some is under way only the newest call waits, so the last one wins.
export function newest(work, failed) {
  let running = false;
  let waiting = false;
  return async function run() {
    waiting = true;
    if (running) return;
    running = true;
    while (waiting) {
      waiting = false;
      try {
        await work(() => waiting);
      } catch (error) {
        failed(error);
      }
    }
    running = false;
  };
}

export function debounced(call, milliseconds) {
  let timer;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(call, milliseconds);
  };
}
