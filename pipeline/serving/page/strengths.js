// The strengths that are asked for: alpha of the one head, or of each of several, and those beside.
import { MOST, Slider, shown } from "./slider.js";

// Browsers hold six connections to a server; a seventh stream would wait for one of them.
const MOST_COLUMNS = 6;

export class Strengths {
  // `heads` gets the sliders, `beside` is the field for further strengths, `range` and `help` say
  // what they take.
  constructor({ heads, beside, range, help }) {
    Object.assign(this, { heads, beside, range, help });
    this.show(1);
  }

  // Makes the sliders, set to the server's own alpha: a number, or an object of one for each head.
  // Where it is a schedule, which is a text, a slider begins at 1.
  show(alpha) {
    this.names = typeof alpha === "object" ? Object.keys(alpha) : null;
    this.sliders = (this.names ?? [null]).map((name) => new Slider(name === null ? "Alpha" : `Alpha of ${name}`));
    this.heads.replaceChildren(...this.sliders.map((slider, number) => this.row(slider, number)));
    this.sliders.forEach((slider, number) => {
      const own = this.names ? alpha[this.names[number]] : alpha;
      slider.value = typeof own === "number" ? own : 1;
    });
    const own = this.names ? this.told(Object.values(alpha)) : shown(alpha);
    this.range.textContent = `${shown(-MOST)} to ${MOST}; the server's own: ${own}`;
    if (this.names) {
      this.help.textContent = "Beside the strengths below: factors of all of them, of which 0 is the base itself; " +
        "six columns at most.";
    }
  }

  row(slider, number) {
    const row = document.createElement("div");
    row.className = "head";
    if (this.names) {
      const title = document.createElement("span");
      title.textContent = this.names[number];
      row.append(title);
    }
    row.append(slider.track, slider.number);
    return row;
  }

  // What is to be asked, in the order of strength: `alpha` as requests have it, `label` for the
  // title of its column, whether it is `steered` at all, and whether it is the sliders' `own`.
  read() {
    const chosen = this.sliders.map((slider) => slider.value);
    const parts = this.beside.value.split(/[\s,;]+/).filter(Boolean);
    const others = parts.map((part) => Number(part.replace("−", "-")));
    const sound = others.every((one) => Math.abs(one) <= MOST);
    this.beside.ariaInvalid = sound ? null : "true";
    if (!sound) {
      const expected = `numbers from ${shown(-MOST)} to ${MOST}, such as 0, 2`;
      throw new Error(`Beside: got “${this.beside.value}”, expected ${expected}`);
    }
    const own = this.names ? 1 : chosen[0];
    const each = [...new Set([own, ...others])].sort((one, other) => one - other);
    if (each.length > MOST_COLUMNS) {
      this.beside.ariaInvalid = "true";
      throw new Error(`Beside: got ${each.length} strengths with the slider's, expected at most ${MOST_COLUMNS}`);
    }
    return each.map((value) => ({
      ...(this.names ? this.mixture(value, chosen) : { alpha: value, label: label(value), steered: value !== 0 }),
      own: value === own,
    }));
  }

  // The strengths of all heads, times a factor.
  mixture(factor, chosen) {
    // Without the digits that binary fractions add: 0.1 times 3 is 0.3.
    const alphas = chosen.map((one) => Number((factor * one).toPrecision(12)));
    if (alphas.some((one) => Math.abs(one) > MOST)) {
      this.beside.ariaInvalid = "true";
      throw new Error(`Beside: ${shown(factor)} times ${this.told(chosen)} is beyond ${MOST}`);
    }
    const alpha = Object.fromEntries(this.names.map((name, number) => [name, alphas[number]]));
    const steered = alphas.some((one) => one !== 0);
    return { alpha, label: steered ? this.told(alphas) : label(0), steered };
  }

  told(alphas) {
    return this.names.map((name, number) => `${name} ${shown(alphas[number])}`).join(", ");
  }

  // What a link says of the strengths, as pairs.
  toLink() {
    const keys = this.names ? this.names.map((name) => `alpha.${name}`) : ["alpha"];
    return [...keys.map((key, number) => [key, this.sliders[number].number.value]), ["beside", this.beside.value]];
  }

  // Sets the strengths from a link; returns what could not be done.
  fromLink(parameters) {
    const problems = [];
    const keys = this.names ? this.names.map((name) => `alpha.${name}`) : ["alpha"];
    keys.forEach((key, number) => {
      const text = parameters.get(key);
      if (text === null) return;
      const value = text.trim() === "" ? NaN : Number(text);
      if (Math.abs(value) <= MOST) this.sliders[number].value = value;
      else problems.push(`${key} “${text}” is not a number from ${shown(-MOST)} to ${MOST}`);
    });
    for (const key of parameters.keys()) {
      if ((key === "alpha" || key.startsWith("alpha.")) && !keys.includes(key)) {
        problems.push(`${key} is of a head that this server does not have`);
      }
    }
    if (parameters.has("beside")) this.beside.value = parameters.get("beside");
    return problems;
  }
}

function label(alpha) {
  return alpha === 0 ? "0, the base" : shown(alpha);
}
