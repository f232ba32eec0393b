// One column: a completion at one alpha, its tokens coloured by what the head changed.

// A difference of log-probabilities this large, in nats, has the full colour.
const FULL = 3;

export class Answer {
  constructor(label, detail) {
    this.detail = detail;
    this.tokens = [];
    this.at = -1;
    this.count = 0;
    this.element = document.createElement("section");
    this.element.className = "answer";
    const title = document.createElement("h2");
    title.textContent = `α = ${label}`;
    title.id = `title-${crypto.getRandomValues(new Uint32Array(1))[0]}`;
    this.rate = document.createElement("p");
    this.rate.className = "rate";
    this.rate.textContent = "waiting";
    this.text = document.createElement("p");
    this.text.className = "text";
    this.text.tabIndex = 0;
    this.text.setAttribute("role", "group");
    this.text.setAttribute("aria-labelledby", title.id);
    this.text.addEventListener("keydown", (event) => this.move(event));
    this.text.addEventListener("blur", () => this.select(-1));
    this.element.append(title, this.rate, this.text);
  }

  // Adds a chunk of the stream: text that is final now, and its tokens' log-probabilities. Tokens
  // whose text was held back, or is one character, come together and are shown as one.
  add(text, logprobs) {
    this.count += Math.max(1, logprobs.length);
    const logprob = logprobs.length < 2 ? logprobs[0] : {
      token: text,
      logprob: logprobs.reduce((sum, token) => sum + token.logprob, 0),
      base_logprob: logprobs[0]?.base_logprob === undefined ? undefined
        : logprobs.reduce((sum, token) => sum + token.base_logprob, 0),
    };
    this.started ??= performance.now();
    const seconds = (performance.now() - this.started) / 1000;
    const rate = this.count > 1 ? `, ${((this.count - 1) / seconds).toFixed(1)} a second` : "";
    this.rate.textContent = `${this.count} tokens${rate}`;
    if (text === "") return;
    const span = document.createElement("span");
    span.className = "token";
    span.textContent = text;
    if (logprob) {
      const change = logprob.logprob - baseOf(logprob);
      span.dataset.change = change.toFixed(3);
      if (Math.abs(change) >= 0.005) {
        span.classList.add(change > 0 ? "raised" : "lowered");
        span.style.setProperty("--share", `${Math.round(Math.min(1, Math.abs(change) / FULL) * 100)}%`);
      }
      span.title = describe(logprob, change);
      span.addEventListener("pointerenter", () => { this.detail.textContent = span.title; });
      span.addEventListener("click", () => { this.detail.textContent = span.title; });
    }
    this.tokens.push(span);
    this.text.append(span);
  }

  end(reason) {
    this.rate.textContent = [this.rate.textContent, reason].filter(Boolean).join("; ");
  }

  fail(message) {
    this.rate.textContent = "";
    const said = document.createElement("p");
    said.className = "failed";
    said.textContent = message;
    this.element.append(said);
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

// vLLM's server says nothing of the base; tokens are not coloured then.
function baseOf(logprob) {
  return logprob.base_logprob ?? logprob.logprob;
}

function describe(logprob, change) {
  if (logprob.base_logprob === undefined) return `${JSON.stringify(logprob.token)}: ${percent(logprob.logprob)}`;
  const factor = Math.exp(Math.abs(change));
  const shown = factor >= 1000 ? factor.toExponential(1) : factor.toFixed(2);
  return `${JSON.stringify(logprob.token)}: base ${percent(logprob.base_logprob)}, ` +
    `with the head ${percent(logprob.logprob)} (${shown} times ${change < 0 ? "less" : "more"} likely)`;
}

function percent(logprob) {
  const value = 100 * Math.exp(logprob);
  return value >= 0.01 ? `${value.toFixed(2)} %` : `${value.toExponential(1)} %`;
}
