// The earlier turns: each a question and the answer that the conversation went on from.
import { copyButton } from "./copy.js";

export class Conversation {
  // Calls `onEdit` with a turn's number, where the user goes back to it.
  constructor(section, list, { announce, onEdit }) {
    Object.assign(this, { section, list, announce, onEdit });
    this.turns = [];
  }

  // Takes over turns, each with its `question`, `answer` and `label`, the strength in words.
  set(turns) {
    this.turns = turns;
    this.section.hidden = !turns.length;
    this.list.replaceChildren(...turns.map((turn, number) => this.draw(turn, number)));
  }

  // The turns as messages of a request.
  messages() {
    return this.turns.flatMap(({ question, answer }) => [
      { role: "user", content: question },
      { role: "assistant", content: answer },
    ]);
  }

  draw({ question, answer, label }, number) {
    const turn = document.createElement("li");
    turn.className = "turn";
    const edit = document.createElement("button");
    edit.type = "button";
    edit.className = "small";
    edit.textContent = "Go back to this prompt";
    edit.addEventListener("click", () => this.onEdit(number));
    const [asked] = part("question", "You", question);
    asked.append(row(edit));
    const [replied, text] = part("reply", `α = ${label}`, answer);
    replied.append(row(copyButton(() => answer, text, this.announce)));
    turn.append(asked, replied);
    return turn;
  }
}

function part(name, who, said) {
  const element = document.createElement("div");
  element.className = name;
  const title = document.createElement("h2");
  title.textContent = who;
  const text = document.createElement("p");
  text.textContent = said;
  element.append(title, text);
  return [element, text];
}

function row(button) {
  const buttons = document.createElement("div");
  buttons.className = "buttons";
  buttons.append(button);
  return buttons;
}
