// What the head changed of a token, as a colour: the scale, its legend, and when it is too little.

// A difference of log-probabilities this large, in nats, has the full colour.
const FULL = 3;
// No colour is to be seen below this.
export const HARDLY = FULL / 10;

// Colours a token by the change of its log-probability, in nats.
export function colour(token, change) {
  if (Math.abs(change) < 0.005) return;
  token.classList.add(change > 0 ? "raised" : "lowered");
  token.style.setProperty("--share", `${Math.round(Math.min(1, Math.abs(change) / FULL) * 100)}%`);
}

// A change with its sign.
export function signed(change, digits = 2) {
  const size = Math.abs(change).toFixed(digits);
  return `${Number(size) === 0 ? "" : change < 0 ? "−" : "+"}${size}`;
}

// Fills an element with the scale and what its numbers mean.
export function drawLegend(element) {
  const said = document.createElement("p");
  said.textContent = "A token's log-probability under the head, minus that under the base, in nats:";
  const scale = document.createElement("div");
  scale.className = "scale";
  const bar = document.createElement("div");
  bar.className = "bar";
  scale.append(bar);
  const ends = { "-1": " or less", 1: " or more" };
  for (const share of [-1, -0.5, 0, 0.5, 1]) {
    const mark = document.createElement("span");
    const change = share * FULL;
    mark.textContent = signed(change, Number.isInteger(change) ? 0 : 1) + (ends[share] ?? "");
    mark.style.setProperty("--at", (share + 1) / 2);
    scale.append(mark);
  }
  const times = Math.round(Math.exp(FULL));
  scale.role = "img";
  scale.ariaLabel = `Blue: down to ${signed(-FULL, 0)} nats, ${times} times less likely than under the base. ` +
    `Orange: up to ${signed(FULL, 0)} nats, ${times} times more likely.`;
  element.replaceChildren(said, scale);
}
