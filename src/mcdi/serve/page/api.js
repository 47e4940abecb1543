// Requests to the server: JSON, one message for every error, and one request of a kind at a time.

let key = "";
export function setKey(value) {
  key = String.fromCharCode(...new TextEncoder().encode(value.trim())); // headers hold bytes
}

export class ServerError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function request(path, options = {}) {
  const headers = key ? { ...options.headers, Authorization: `Bearer ${key}` } : options.headers;
  let response;
  try {
    // Relative to this file, as a proxy may serve all of it under a path.
    response = await fetch(new URL(`..${path}`, import.meta.url), { ...options, headers });
  } catch {
    throw new ServerError("The server does not answer. Check that it is running.", 0);
  }
  if (response.ok) return response;
  const answer = await response.json().catch(() => ({}));
  throw new ServerError(answer.error ?? `The server answered with status ${response.status}.`, response.status);
}

export const models = async () => (await (await request("/v1/models")).json()).models;

export function send(path, body) {
  return request(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
}

export const post = async (path, body) => (await send(path, body)).json();

// Hand an answer to the visitor as a file; meanwhile its button says that it is being written.
export async function save(name, button, answer) {
  const label = button.textContent;
  button.textContent = "Writing the file …";
  button.disabled = true;
  try {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await (await answer).blob());
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  } finally {
    button.textContent = label;
    button.disabled = false;
  }
}

// Run `work` one call at a time; of the calls made meanwhile only the latest runs afterwards.
export function newest(work, onError) {
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
        onError(error);
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
