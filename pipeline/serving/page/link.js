// A link to what stands on the page. It is the address's fragment, which browsers do not send.

// Longer addresses are cut by some programs that pass links on.
const LONGEST = 60_000;

// Puts pairs of names and values into the address; returns whether they fit.
export function writeLink(pairs) {
  const text = `#${new URLSearchParams(pairs)}`;
  if (text.length > LONGEST) return false;
  history.replaceState(null, "", text);
  return true;
}

// What the address says.
export function readLink() {
  return new URLSearchParams(location.hash.slice(1));
}

// The earlier turns that a link holds; throws where they are not turns.
export function turnsOf(text) {
  const turns = JSON.parse(text);
  const keys = ["question", "answer", "label"];
  if (!Array.isArray(turns) || turns.some((turn) => keys.some((key) => typeof turn?.[key] !== "string"))) {
    throw new Error("not turns");
  }
  return turns.map(({ question, answer, label }) => ({ question, answer, label }));
}
