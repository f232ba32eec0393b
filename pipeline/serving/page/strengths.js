// The sliders: alpha of the one head, or of each of several, and what is asked beside them.

// Browsers hold six connections to a server; a seventh stream would wait for one of them.
const MOST = 6;
const at = (id) => document.getElementById(id);

// Names of several heads, in the order of the server; null where there is one without a name.
let names = null;

// Sets the sliders to the server's own alpha: a number, or an object with one for each head.
export function show(alpha) {
  if (typeof alpha === "number") {
    join(at("slider"), at("alpha"));
    at("slider").value = at("alpha").value = alpha;
    return;
  }
  names = Object.keys(alpha);
  const rows = names.map((name) => {
    const row = document.createElement("div");
    row.className = "head";
    const title = document.createElement("span");
    title.textContent = name;
    const slider = at("slider").cloneNode();
    const number = at("alpha").cloneNode();
    slider.id = `slider-${name}`;
    number.id = `alpha-${name}`;
    slider.ariaLabel = `Alpha of ${name}, slider`;
    number.ariaLabel = `Alpha of ${name}, number`;
    slider.value = number.value = alpha[name];
    join(slider, number);
    row.append(title, slider, number);
    return row;
  });
  at("heads").replaceChildren(...rows);
  at("compare-help").textContent = "times all strengths: 0 is the base itself; six at most.";
}

function join(slider, number) {
  slider.oninput = () => { number.value = slider.value; };
  number.oninput = () => { slider.value = number.value; };
}

// What is to be asked: `alpha` as requests have it, and `label` for the title of its column.
export function read() {
  const parts = at("compare").value.split(/[\s,;]+/).filter(Boolean);
  const own = names ? "1" : at("alpha").value;
  const values = [own, ...parts].map((part) => Number(part.replace("−", "-")));
  const chosen = (names ?? []).map((name) => Number(at(`alpha-${name}`).value));
  if ([...values, ...chosen].some((value) => !Number.isFinite(value))) {
    throw new Error(`Strengths: got "${at("compare").value}", expected numbers such as 0, 2`);
  }
  const each = [...new Set(values)].sort((one, other) => one - other);
  if (each.length > MOST) throw new Error(`Strengths: got ${each.length}, expected at most ${MOST}`);
  return each.map((value) => (names ? mixture(value, chosen) : { alpha: value, label: label(value) }));
}

// The strengths of all heads, times a factor.
function mixture(factor, chosen) {
  // Without the digits that binary fractions add: 0.1 times 3 is 0.3.
  const alphas = chosen.map((one) => Number((factor * one).toPrecision(12)));
  const alpha = Object.fromEntries(names.map((name, number) => [name, alphas[number]]));
  const told = names.map((name, number) => `${name} ${alphas[number]}`).join(", ");
  return { alpha, label: alphas.some((one) => one !== 0) ? told : label(0) };
}

function label(alpha) {
  return alpha === 0 ? "0, the base" : String(alpha);
}
