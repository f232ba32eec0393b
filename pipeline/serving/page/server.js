// The server: which bases it has, and completions as they stream.

const KEY = "mav-key";

// A response that is an error, with its HTTP status.
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

// Remembers the API key until the window is closed.
export function useKey(key) {
  sessionStorage.setItem(KEY, key);
}

// The list of bases, with the server's own alpha and its most tokens.
export async function models() {
  const response = await request("v1/models", {});
  return response.json();
}

// Asks for a chat completion. Yields its parts: `text` that is final, `logprobs` of its tokens, and
// in the last one `finish`, why it ended.
export async function* complete(body, signal) {
  const response = await request("v1/chat/completions", {
    method: "POST",
    signal,
    body: JSON.stringify({ ...body, stream: true, logprobs: true }),
  });
  let whole = false;
  for await (const data of events(response.body)) {
    // Read on to the end of the stream, so that the connection can be used again.
    whole ||= data === "[DONE]";
    if (whole) continue;
    const part = JSON.parse(data);
    if (part.error) throw new Error(part.error.message);
    const choice = part.choices[0];
    if (!choice) continue;
    yield {
      text: choice.delta.content ?? "",
      logprobs: choice.logprobs?.content ?? [],
      finish: choice.finish_reason ?? null,
    };
  }
  if (!whole) throw new Error("The server's answer broke off.");
}

async function request(path, options) {
  const key = sessionStorage.getItem(KEY);
  const headers = { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Error("The server does not answer. Is it running?");
  }
  if (!response.ok) throw new Refused(response.status, await messageOf(response));
  return response;
}

async function messageOf(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answered ${response.status} ${response.statusText}`;
  }
}

// The data of each event of a stream of server-sent events.
async function* events(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (held + decoder.decode(value, { stream: true })).split("\n\n");
    held = parts.pop();
    for (const part of parts) if (part.startsWith("data: ")) yield part.slice(6);
  }
}
