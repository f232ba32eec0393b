// The page: what happens when something is asked, moved, continued or opened from a link.
import { drawLegend } from "./colours.js";
import { Columns } from "./columns.js";
import { Conversation } from "./conversation.js";
import { copyText, say } from "./copy.js";
import { readLink, turnsOf, writeLink } from "./link.js";
import { models, useKey } from "./server.js";
import { readSettings, settingsFromLink, settingsInWords, settingsToLink } from "./settings.js";
import { Strengths } from "./strengths.js";

// After a change, answers are asked for anew when nothing more changes for so many milliseconds.
const PAUSE = 300;
const at = (id) => document.getElementById(id);
const announce = (words) => { at("announce").textContent = words; };
const HELP = "Point at a token, or reach it by Tab and arrow keys, to see what changed.";
let ready = false;
let timer = null;
// What the columns answer; null before anything was asked.
let asked = null;

const strengths = new Strengths({
  heads: at("heads"),
  beside: at("compare"),
  range: at("range"),
  help: at("compare-help"),
});
drawLegend(at("legend"));
const conversation = new Conversation(at("conversation"), at("turns"), { announce, onEdit: goBack });
const columns = new Columns(at("answers"), { detail: at("detail"), announce, onContinue: goOn }, (busy) => {
  at("stop").disabled = !busy;
  at("answers").setAttribute("aria-busy", busy);
});

function show(id, words) {
  at(id).textContent = words;
  at(id).hidden = !words;
}

// Asks the server what it has. What goes wrong is no error of the user's, who has done nothing yet.
async function begin() {
  let listed;
  try {
    listed = await models();
  } catch (error) {
    at("key-form").hidden = error.status !== 401;
    show("notice", error.status === 401 ? "" : `${error.message} Ask tries again.`);
    throw error;
  }
  at("key-form").hidden = true;
  show("notice", "");
  show("error", "");
  const options = listed.data.map((model) => new Option(model.id, model.id, false, model.in_use));
  at("base").replaceChildren(...options);
  at("tokens").max = listed.max_tokens;
  at("tokens").value = Math.min(at("tokens").value, listed.max_tokens);
  strengths.show(listed.alpha);
  ready = true;
  open();
}

// Takes over what the address says, and asks nothing.
function open() {
  const link = readLink();
  if ([...link].length) fill(link);
  fold();
}

function fill(link) {
  const problems = [...strengths.fromLink(link), ...settingsFromLink(link)];
  const base = link.get("base");
  if (base !== null && [...at("base").options].some(({ value }) => value === base)) at("base").value = base;
  else if (base !== null) problems.push(`the base “${base}” is not served here`);
  try {
    conversation.set(turnsOf(link.get("turns") ?? "[]"));
  } catch {
    problems.push("its earlier turns cannot be read");
  }
  forget();
  if (link.has("prompt")) at("prompt").value = link.get("prompt");
  show("notice", problems.length ? `Not taken from the link: ${problems.join("; ")}.` : "");
}

function keepInLink() {
  return writeLink([
    ["prompt", at("prompt").value],
    ...strengths.toLink(),
    ...settingsToLink(),
    ["base", at("base").value],
    ...(conversation.turns.length ? [["turns", JSON.stringify(conversation.turns)]] : []),
  ]);
}

async function ask() {
  clearTimeout(timer);
  try {
    if (!ready) await begin();
  } catch (error) {
    show("error", error.status === 401 ? "This server asks for its API key; give it above." : error.message);
    return;
  }
  const prompt = at("prompt").value;
  at("prompt").ariaInvalid = prompt.trim() ? null : "true";
  if (!prompt.trim()) {
    show("error", "Prompt: got nothing, expected something to answer");
    at("prompt").focus();
    return;
  }
  const messages = [...conversation.messages(), { role: "user", content: prompt }];
  const before = asked;
  asked = { prompt, base: at("base").value, messages };
  if (!refresh({ afresh: true })) asked = before;
  compare();
  // On a phone, the answers begin below what is seen.
  if (at("answers").getBoundingClientRect().top > 0.75 * innerHeight) at("strength").scrollIntoView();
}

// Has the columns answer what was asked, under the settings as they are now.
function refresh({ afresh = false, quiet = false } = {}) {
  let requests;
  try {
    const settings = readSettings();
    requests = strengths.read().map(({ alpha, ...one }) => ({
      ...one,
      body: { model: asked.base, messages: asked.messages, alpha, ...settings },
    }));
  } catch (error) {
    // While something is being typed, what stands there may not be sound yet.
    if (quiet) return false;
    show("error", error.message);
    if (at("settings").querySelector("[aria-invalid]")) at("settings").open = true;
    return false;
  }
  show("error", "");
  show("notice", "");
  show("detail", HELP);
  columns.show(requests, afresh);
  keepInLink();
  return true;
}

// Strengths and settings that change are asked for anew, once something was asked at all.
function changed(event) {
  fold();
  clearTimeout(timer);
  if (asked) timer = setTimeout(refresh, PAUSE, { quiet: event.type === "input" });
}

// On a phone, the settings are folded up, and told in a line.
function fold() {
  show("chosen", settingsInWords());
}

// A prompt or a base, which may have to be loaded, waits for the button; says so.
function compare() {
  const prompt = asked !== null && at("prompt").value !== asked.prompt;
  const base = asked !== null && at("base").value !== asked.base;
  if (!prompt && !base) {
    show("edited", "");
    return;
  }
  const from = base ? ` of ${asked.base}` : "";
  show("edited", `The answers below are${from} to “${asked.prompt}”. Ask sends what stands here now.`);
}

function forget() {
  clearTimeout(timer);
  columns.clear();
  asked = null;
  show("detail", "");
  at("legend").hidden = at("uncoloured").hidden = true;
  show("error", "");
  compare();
}

function goOn(answer) {
  const { prompt } = asked;
  conversation.set([...conversation.turns, { question: prompt, answer: answer.said, label: answer.label }]);
  // What was typed meanwhile is the next turn.
  if (at("prompt").value === prompt) at("prompt").value = "";
  forget();
  keepInLink();
  announce("The conversation goes on from this answer.");
  at("prompt").focus();
}

function goBack(number) {
  at("prompt").value = conversation.turns[number].question;
  conversation.set(conversation.turns.slice(0, number));
  forget();
  keepInLink();
  at("prompt").focus();
}

function renew() {
  conversation.set([]);
  at("prompt").value = "";
  forget();
  keepInLink();
  at("prompt").focus();
}

async function copyLink() {
  const fits = keepInLink();
  const copied = fits && (await copyText(location.href));
  const words = copied ? "Link copied" : fits ? "Copy it from the address" : "Too long for a link";
  say(at("link"), words, announce);
}

at("ask").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
at("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    at("ask").requestSubmit();
  }
});
at("prompt").addEventListener("input", compare);
at("base").addEventListener("change", compare);
for (const id of ["strength", "compare", "tokens", "temperature", "seed"]) {
  at(id).addEventListener("input", changed);
  at(id).addEventListener("change", changed);
}
at("stop").addEventListener("click", () => { clearTimeout(timer); columns.stop(); });
at("renew").addEventListener("click", renew);
at("link").addEventListener("click", copyLink);
at("answers").addEventListener("coloured", (event) => {
  at("legend").hidden = !event.detail;
  at("uncoloured").hidden = event.detail;
});
at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(at("key").value);
  at("key").value = "";
  begin().catch((error) => {
    if (error.status === 401) show("error", "The server does not accept this key.");
  });
});
at("settings").addEventListener("toggle", fold);
at("settings").open = !matchMedia("(max-width: 30rem)").matches;
window.addEventListener("hashchange", () => { if (ready) open(); });
begin().catch(() => {});
