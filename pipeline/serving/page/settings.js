// The fields for how answers are written, which bound what they take by their own attributes.
import { shown } from "./slider.js";

const FIELDS = { tokens: "max_tokens", temperature: "temperature", seed: "seed" };
const field = (id) => document.getElementById(id);

// The settings as a request has them; throws where a field holds none.
export function readSettings() {
  const settings = {};
  let problem = null;
  for (const [id, name] of Object.entries(FIELDS)) {
    const sound = isSound(id, field(id).value);
    field(id).ariaInvalid = sound ? null : "true";
    if (sound) settings[name] = Number(field(id).value);
    else problem ??= `${title(id)}: got ${field(id).value || "no number"}, expected ${expected(id)}`;
  }
  if (problem) throw new Error(problem);
  return settings;
}

// The settings in a few words.
export function settingsInWords() {
  const [beside, tokens, temperature, seed] = ["compare", ...Object.keys(FIELDS)].map((id) => field(id).value);
  return `beside ${beside}; ${tokens} tokens, temperature ${temperature}, seed ${seed}`;
}

// What a link says of the settings, as pairs.
export function settingsToLink() {
  return Object.keys(FIELDS).map((id) => [id, field(id).value]);
}

// Sets the fields from a link; returns what could not be done.
export function settingsFromLink(parameters) {
  const problems = [];
  for (const id of Object.keys(FIELDS)) {
    const text = parameters.get(id);
    if (text === null) continue;
    if (isSound(id, text)) field(id).value = Number(text);
    else problems.push(`${id} “${text}” is not ${expected(id)}`);
  }
  return problems;
}

function title(id) {
  return field(id).labels[0].textContent.trim();
}

function isSound(id, text) {
  const value = text.trim() === "" ? NaN : Number(text);
  const { min, max } = field(id);
  const whole = id === "temperature" || Number.isSafeInteger(value);
  return Number.isFinite(value) && whole && !(min !== "" && value < min) && !(max !== "" && value > max);
}

function expected(id) {
  const { min, max } = field(id);
  const kind = id === "temperature" ? "a number" : "a whole number";
  return min === "" ? kind : `${kind} from ${shown(min)}${max === "" ? "" : ` to ${max}`}`;
}
