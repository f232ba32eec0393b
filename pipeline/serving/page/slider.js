// A slider with numbered ticks, and beside it a box that takes any strength the server does.

// What the slider reaches where nothing outside was asked for.
const LOW = -2;
const HIGH = 4;
// Heads are recommended with strengths in steps of this.
const STEP = 0.05;
// The server's own limit, of either sign.
export const MOST = 100;
const MOST_TICKS = 8;

// A number as the page shows it, with a minus sign.
export function shown(value) {
  return String(value).replace("-", "−");
}

export class Slider {
  constructor(name) {
    this.name = name;
    this.slider = document.createElement("input");
    this.slider.type = "range";
    this.slider.className = "slider";
    this.slider.step = STEP;
    this.slider.ariaLabel = `${name}, slider`;
    this.number = document.createElement("input");
    this.number.type = "number";
    this.number.className = "number";
    this.number.step = STEP;
    this.number.min = -MOST;
    this.number.max = MOST;
    this.number.ariaLabel = `${name}, number`;
    this.ticks = document.createElement("div");
    this.ticks.className = "ticks";
    this.ticks.ariaHidden = "true";
    this.track = document.createElement("div");
    this.track.className = "track";
    this.track.append(this.slider, this.ticks);
    this.slider.addEventListener("input", () => { this.number.value = this.slider.value; });
    this.number.addEventListener("input", () => this.follow());
  }

  set value(value) {
    this.number.value = value;
    this.follow();
  }

  // The strength; throws where the box holds none.
  get value() {
    const value = this.number.value === "" ? NaN : Number(this.number.value);
    const sound = Math.abs(value) <= MOST;
    this.number.ariaInvalid = sound ? null : "true";
    if (sound) return value;
    throw new Error(`${this.name}: got ${this.number.value || "no number"}, expected ${shown(-MOST)} to ${MOST}`);
  }

  // Has the slider show the number, and reach as far.
  follow() {
    if (this.number.value === "") return;
    const value = Math.max(-MOST, Math.min(MOST, Number(this.number.value)));
    const wide = Math.max(HIGH, value) - Math.min(LOW, value);
    const step = [1, 2, 5, 10, 20, 50].find((one) => wide / one <= MOST_TICKS);
    const low = Math.floor(Math.min(LOW, value) / step) * step;
    const high = Math.ceil(Math.max(HIGH, value) / step) * step;
    this.slider.min = Math.max(-MOST, low);
    this.slider.max = Math.min(MOST, high);
    this.slider.value = value;
    const ticks = [];
    for (let at = low; at <= high; at += step) {
      const tick = document.createElement("span");
      tick.textContent = shown(at);
      tick.style.setProperty("--at", (at - low) / (high - low));
      ticks.push(tick);
    }
    this.ticks.replaceChildren(...ticks);
  }
}
