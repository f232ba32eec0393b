// The page: requests completions of one prompt at several alphas and shows them as they stream.
import { Answer } from "./answer.js";
import { read, show } from "./strengths.js";

const at = (id) => document.getElementById(id);
let running = null;

function headers() {
  const key = sessionStorage.getItem("mav-key");
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

function showError(message) {
  at("error").textContent = message;
  at("error").hidden = !message;
}

async function refused(response) {
  if (response.status === 401) at("key-form").hidden = false;
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answered ${response.status} ${response.statusText}`;
  }
}

async function begin() {
  const response = await fetch("v1/models", { headers: headers() });
  if (!response.ok) throw new Error(await refused(response));
  const models = await response.json();
  at("key-form").hidden = true;
  const options = models.data.map((model) => new Option(model.id, model.id, false, model.in_use));
  at("base").replaceChildren(...options);
  at("tokens").max = models.max_tokens;
  at("tokens").value = Math.min(at("tokens").value, models.max_tokens);
  show(models.alpha);
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

async function ask(alpha, answer, signal) {
  const response = await fetch("v1/chat/completions", {
    method: "POST",
    headers: headers(),
    signal,
    body: JSON.stringify({
      model: at("base").value,
      messages: [{ role: "user", content: at("prompt").value }],
      alpha,
      max_tokens: Number(at("tokens").value),
      temperature: Number(at("temperature").value),
      seed: Number(at("seed").value),
      stream: true,
      logprobs: true,
    }),
  });
  if (!response.ok) throw new Error(await refused(response));
  let finish = null;
  let whole = false;
  for await (const data of events(response.body)) {
    // Read on to the end of the stream, so that the connection can be used again.
    whole ||= data === "[DONE]";
    if (whole) continue;
    const part = JSON.parse(data);
    if (part.error) throw new Error(part.error.message);
    const choice = part.choices[0];
    if (!choice) continue;
    finish = choice.finish_reason ?? finish;
    const content = choice.delta.content;
    const logprobs = choice.logprobs?.content ?? [];
    if (logprobs.length || content) answer.add(content ?? "", logprobs);
  }
  if (!whole) throw new Error("The server's answer broke off.");
  return finish;
}

async function one(alpha, answer, signal) {
  try {
    const finish = await ask(alpha, answer, signal);
    answer.end(finish === "length" ? "cut at the most tokens" : "");
  } catch (error) {
    if (signal.aborted) answer.end("stopped");
    else answer.fail(error.message);
  }
}

async function askAll() {
  showError("");
  let each;
  try {
    each = read();
  } catch (error) {
    showError(error.message);
    return;
  }
  running?.abort();
  const own = new AbortController();
  running = own;
  at("send").disabled = true;
  at("stop").disabled = false;
  const answers = each.map(({ label }) => new Answer(label, at("detail")));
  at("answers").replaceChildren(...answers.map((answer) => answer.element));
  at("announce").textContent = `${each.length} answers are being written.`;
  await Promise.all(each.map(({ alpha }, number) => one(alpha, answers[number], own.signal)));
  if (running !== own) return;
  running = null;
  at("send").disabled = false;
  at("stop").disabled = true;
  // One announcement at the end: a screen reader must not read every token of every column.
  const said = answers.map((answer, number) => `Alpha ${each[number].label}: ${answer.text.textContent}`);
  at("announce").textContent = said.join("\n");
}

at("stop").addEventListener("click", () => running?.abort());
at("ask").addEventListener("submit", (event) => { event.preventDefault(); askAll(); });
at("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    at("ask").requestSubmit();
  }
});
at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("mav-key", at("key").value);
  at("key").value = "";
  showError("");
  begin().catch((error) => showError(error.message));
});
begin().catch((error) => showError(error.message));
