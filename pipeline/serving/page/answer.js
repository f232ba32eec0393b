// One column: a completion at one strength, its tokens coloured by what the head changed.
import { HARDLY, colour, signed } from "./colours.js";
import { copyButton } from "./copy.js";

export class Answer {
  // `label` is the strength in words, `steered` whether it is other than 0. Calls `announce` with
  // what a screen reader should say, and `onContinue` where the user goes on from this answer.
  constructor({ label, steered }, { detail, announce, onContinue }) {
    Object.assign(this, { label, steered, detail });
    this.tokens = [];
    this.changes = [];
    this.at = -1;
    this.count = 0;
    this.element = document.createElement("section");
    this.element.className = "answer";
    this.element.setAttribute("aria-busy", "true");
    const title = this.part("h2", "", `α = ${label} `);
    title.id = `title-${crypto.getRandomValues(new Uint32Array(1))[0]}`;
    this.mark = document.createElement("small");
    title.append(this.mark);
    this.rate = this.part("p", "rate", "waiting");
    this.text = this.part("p", "text");
    this.text.tabIndex = 0;
    this.text.setAttribute("role", "group");
    this.text.setAttribute("aria-labelledby", title.id);
    this.text.addEventListener("keydown", (event) => this.move(event));
    this.text.addEventListener("blur", () => this.select(-1));
    this.buttons = this.part("div", "buttons");
    this.buttons.hidden = true;
    const goOn = document.createElement("button");
    goOn.type = "button";
    goOn.className = "small";
    goOn.textContent = "Continue from this answer";
    goOn.addEventListener("click", () => onContinue(this));
    this.buttons.append(copyButton(() => this.said, this.text, announce), goOn);
  }

  get said() {
    return this.text.textContent;
  }

  // Whether it is the column of the sliders themselves.
  set own(own) {
    this.element.classList.toggle("own", own);
    this.mark.textContent = own ? "the slider's" : "";
  }

  part(tag, name, text = "") {
    const part = document.createElement(tag);
    if (name) part.className = name;
    part.textContent = text;
    this.element.append(part);
    return part;
  }

  // Adds a part of the stream: text that is final now, and its tokens' log-probabilities. Tokens
  // whose text was held back, or is one character, come together and are shown as one.
  add(text, logprobs) {
    this.count += Math.max(1, logprobs.length);
    this.started ??= performance.now();
    const seconds = (performance.now() - this.started) / 1000;
    const rate = seconds > 0 ? `, ${((this.count - 1) / seconds).toFixed(1)} a second` : "";
    this.rate.textContent = `${this.count} token${this.count > 1 ? "s" : ""}${rate}`;
    if (text === "") return;
    const token = document.createElement("span");
    token.className = "token";
    token.textContent = text;
    if (logprobs.length) this.describe(token, joined(text, logprobs));
    this.tokens.push(token);
    this.text.append(token);
  }

  describe(token, logprob) {
    if (logprob.base_logprob === undefined) {
      token.title = `${JSON.stringify(logprob.token)}: ${percent(logprob.logprob)}`;
    } else {
      const change = logprob.logprob - logprob.base_logprob;
      token.dataset.change = change.toFixed(3);
      colour(token, change);
      this.changes.push(change);
      token.title = inWords(logprob, change);
    }
    token.addEventListener("pointerenter", () => { this.detail.textContent = token.title; });
    token.addEventListener("click", () => { this.detail.textContent = token.title; });
    if (!this.tokens.length) {
      const coloured = logprob.base_logprob !== undefined;
      this.element.dispatchEvent(new CustomEvent("coloured", { bubbles: true, detail: coloured }));
    }
  }

  // The stream has ended; `reason` says why where it is not that the answer is whole.
  end(reason) {
    this.element.setAttribute("aria-busy", "false");
    this.rate.textContent = [this.rate.textContent, reason].filter(Boolean).join("; ");
    if (this.steered && this.changes.length) this.sumUp();
    this.buttons.hidden = this.said === "";
    this.element.append(this.buttons);
  }

  sumUp() {
    const most = this.changes.reduce((one, other) => (Math.abs(other) > Math.abs(one) ? other : one));
    const mean = this.changes.reduce((sum, one) => sum + Math.abs(one), 0) / this.changes.length;
    this.part("p", "change", `largest change ${signed(most)} nats, ${mean.toFixed(2)} on average`);
    if (Math.abs(most) >= HARDLY) return;
    this.part("p", "hardly", `The head hardly moved this answer: no token by as much as ${HARDLY} nats (a factor of ` +
      `${Math.exp(HARDLY).toFixed(2)}), so no colour shows. Try an α further from 0. If that changes nothing ` +
      "either, the head has learned little about prompts like this.");
  }

  fail(message) {
    this.failed = true;
    this.element.setAttribute("aria-busy", "false");
    this.rate.textContent = "";
    this.part("p", "failed", message);
  }

  move(event) {
    const last = this.tokens.length - 1;
    const to = {
      ArrowRight: Math.min(last, this.at + 1),
      ArrowLeft: Math.max(0, this.at - 1),
      Home: 0,
      End: last,
    }[event.key];
    if (to === undefined || last < 0) return;
    event.preventDefault();
    this.select(to);
  }

  select(to) {
    this.tokens[this.at]?.classList.remove("at");
    this.at = to;
    const token = this.tokens[to];
    if (!token) return;
    token.classList.add("at");
    this.detail.textContent = token.title || token.textContent;
  }
}

// Several tokens as one: their text, and the sums of their log-probabilities.
function joined(text, logprobs) {
  if (logprobs.length === 1) return logprobs[0];
  const sum = (key) => logprobs.reduce((total, token) => total + token[key], 0);
  const known = logprobs[0].base_logprob !== undefined;
  return { token: text, logprob: sum("logprob"), base_logprob: known ? sum("base_logprob") : undefined };
}

function inWords(logprob, change) {
  const token = JSON.stringify(logprob.token);
  if (Math.abs(change) < 0.005) return `${token}: ${percent(logprob.logprob)}, as under the base`;
  const factor = Math.exp(Math.abs(change));
  const shown = factor >= 1000 ? factor.toExponential(1) : factor.toFixed(2);
  return `${token}: base ${percent(logprob.base_logprob)}, with the head ${percent(logprob.logprob)} ` +
    `(${shown} times ${change < 0 ? "less" : "more"} likely, ${signed(change)} nats)`;
}

function percent(logprob) {
  const value = 100 * Math.exp(logprob);
  return value >= 0.01 ? `${value.toFixed(2)} %` : `${value.toExponential(1)} %`;
}
