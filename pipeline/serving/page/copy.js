// Copying, also where the browser does not give its clipboard to scripts.

// Copies a text; returns whether it worked.
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // There is none on plain HTTP, and permission may be refused.
    return copySelected(text);
  }
}

function copySelected(text) {
  const focused = document.activeElement;
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "unseen";
  area.readOnly = true;
  document.body.append(area);
  area.select();
  try {
    return document.execCommand("copy");
  } catch {
    return false;
  } finally {
    area.remove();
    focused?.focus();
  }
}

// A button that copies what `text()` returns; where that fails, it selects `shown` for the user.
export function copyButton(text, shown, announce) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "small";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    const copied = await copyText(text());
    if (!copied) getSelection().selectAllChildren(shown);
    say(button, copied ? "Copied" : "Selected: press Ctrl+C", announce);
  });
  return button;
}

// Shows what came of a click on the button itself, for a while.
export function say(button, words, announce) {
  button.dataset.name ??= button.textContent;
  button.textContent = words;
  announce(words);
  clearTimeout(Number(button.dataset.timer));
  button.dataset.timer = setTimeout(() => { button.textContent = button.dataset.name; }, 2500);
}
