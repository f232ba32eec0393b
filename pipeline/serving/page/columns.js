// The answers side by side. Those whose request changes are asked for anew; the others stay.
import { Answer } from "./answer.js";
import { complete } from "./server.js";

export class Columns {
  // `surroundings` are what an `Answer` needs; calls `onBusy` with whether any is being written.
  constructor(element, surroundings, onBusy) {
    Object.assign(this, { element, surroundings, onBusy });
    this.columns = [];
    this.running = 0;
  }

  // Shows the answers to requests: each has its `body`, and `label`, `steered` and `own` of its
  // strength. An answer to the same body stays, unless all are wanted `afresh`.
  show(requests, afresh) {
    const before = this.columns;
    const own = before.find((column) => column.own);
    const begun = [];
    this.columns = requests.map((one, place) => {
      const key = JSON.stringify(one.body);
      let column = afresh ? null : before.find((other) => other.key === key && !other.answer.failed);
      if (!column) {
        column = this.begin(key, one, one.own ? own : before[place]);
        begun.push([column, one.body]);
      }
      column.own = one.own;
      column.answer.own = one.own;
      return column;
    });
    for (const column of before) if (!this.columns.includes(column)) this.drop(column);
    this.columns.forEach(({ answer }, place) => {
      const present = this.element.children[place];
      if (present !== answer.element) this.element.insertBefore(answer.element, present ?? null);
    });
    if (!begun.length) return;
    this.surroundings.announce(`${begun.length} answer${begun.length > 1 ? "s are" : " is"} being written.`);
    for (const [column, body] of begun) this.write(column, body);
  }

  begin(key, one, previous) {
    const answer = new Answer(one, this.surroundings);
    // Until it is written, it takes the room of the one before, so that nothing below jumps.
    if (previous) answer.element.style.minHeight = `${previous.answer.element.offsetHeight}px`;
    return { key, answer, control: new AbortController(), told: false };
  }

  drop({ answer, control }) {
    // The server stops where nobody listens.
    control.abort();
    answer.element.remove();
  }

  async write({ answer, control }, body) {
    this.running += 1;
    this.onBusy(true);
    try {
      let finish = null;
      for await (const part of complete(body, control.signal)) {
        finish = part.finish ?? finish;
        if (part.text || part.logprobs.length) answer.add(part.text, part.logprobs);
      }
      answer.end(finish === "length" ? "cut at the limit" : "");
    } catch (error) {
      if (control.signal.aborted) answer.end("stopped");
      else answer.fail(error.message);
    }
    answer.element.style.minHeight = "";
    this.running -= 1;
    if (!this.running) this.settle();
  }

  settle() {
    this.onBusy(false);
    // One announcement at the end: a screen reader must not read every token of every column.
    const fresh = this.columns.filter((column) => !column.told);
    for (const column of fresh) column.told = true;
    if (!fresh.length) return;
    this.surroundings.announce(fresh.map(({ answer }) => `Alpha ${answer.label}: ${answer.said}`).join("\n"));
  }

  stop() {
    for (const { control } of this.columns) control.abort();
  }

  clear() {
    for (const column of this.columns) this.drop(column);
    this.columns = [];
  }
}
