// A window with all that one trial's files say, and one with the driver's log.

import { Figure } from "./canvas.js";
import { drawLosses } from "./curves.js";
import { find, make, makeTable } from "./dom.js";
import { formatGib, formatLoss, formatTime, formatValue } from "./format.js";

// A trial that reports while its window is open is read again, but not more often than this.
const AGAIN_MS = 2000;

export class Detail {
  constructor(store, ask, control) {
    this.store = store;
    this.ask = ask;
    this.control = control;
    this.trial = null;
    this.shown = "";
    this.readAt = 0;
    this.later = 0;
    this.dialog = find("detail");
    find("detail-close").addEventListener("click", () => this.dialog.close());
    this.dialog.addEventListener("click", (event) => { if (event.target === this.dialog) this.dialog.close(); });
    this.dialog.addEventListener("close", () => { this.trial = null; });
    find("log-button").addEventListener("click", () => this.openLog());
  }

  async open(trial) {
    this.trial = trial;
    this.begin(`Trial ${trial}`);
    await this.read();
  }

  async openLog() {
    this.trial = null;
    this.begin("The driver's log");
    const answer = await this.ask("api/log");
    const text = answer.ok ? await answer.text() : "It cannot be read.";
    find("detail-body").replaceChildren(make("p", { className: "caption", text: "The end of logs/driver.log." }),
      make("pre", { text: text || "It is empty.", tabindex: "0" }));
  }

  begin(title) {
    find("detail-title").textContent = title;
    find("detail-body").replaceChildren(make("p", { text: "Reading ...", className: "muted" }));
    if (!this.dialog.open) this.dialog.showModal();
  }

  // Reads an open trial again if it has changed since.
  refresh() {
    if (this.trial === null || !this.dialog.open) return;
    const row = JSON.stringify(this.store.trials.get(this.trial) ?? null);
    if (row === this.shown) return;
    const left = this.readAt + AGAIN_MS - performance.now();
    window.clearTimeout(this.later);
    // Nothing else may come that would have it read again.
    if (left <= 0) this.read();
    else this.later = window.setTimeout(() => this.refresh(), left);
  }

  async read() {
    const { trial } = this;
    this.readAt = performance.now();
    this.shown = JSON.stringify(this.store.trials.get(trial) ?? null);
    const answer = await this.ask(`api/trials/${encodeURIComponent(trial)}`);
    if (this.trial !== trial) return;
    if (!answer.ok) {
      find("detail-body").replaceChildren(make("p", { text: "This trial cannot be read.", className: "bad" }));
      return;
    }
    this.render(this.store.trials.get(trial), await answer.json());
  }

  render(row, files) {
    const body = find("detail-body");
    const focused = body.contains(document.activeElement) ? document.activeElement : null;
    const opened = [...body.querySelectorAll("details:not(.clones)")].map((one) => one.open);
    const canvas = make("canvas", { role: "img", "aria-label": "Training and validation loss of this trial" });
    const folded = (summary, ...children) => make("details", {}, make("summary", { text: summary }), ...children);
    const asks = row ? [this.control.stopButton(row.id), this.control.cloneForm(row.id)].filter(Boolean) : [];
    const parts = [
      ...(row ? [factsOf(row)] : []), ...asks,
      make("h3", { text: "Losses" }), make("div", {}, canvas),
      make("p", { className: "caption", text: "By step. Grey: training loss; in colour: validation loss at the reports." }),
      ...(files.error === null ? [] : [make("h3", { text: "error.txt" }), make("pre", { text: files.error, tabindex: "0" })]),
      ...(row ? [make("h3", { text: "Parameters" }), makeTable(["parameter", "value"],
        Object.entries(row.params).map(([name, value]) => [name, formatValue(value)]))] : []),
      make("h3", { text: "Reports" }), scrolling(reportTable(files.metrics)),
      folded("Events", scrolling(eventTable(files.events))),
      folded("record.json", make("pre", { text: files.record || "There is none.", tabindex: "0" })),
    ];
    body.replaceChildren(...parts);
    [...body.querySelectorAll("details:not(.clones)")].forEach((one, at) => { one.open = opened[at] ?? false; });
    // Of what is still there: the form that clones, and it alone.
    if (focused?.isConnected) focused.focus({ preventScroll: true });
    new Figure(canvas, (figure) => drawLosses(figure, files));
  }
}

const scrolling = (table) => make("div", { className: "scroll", tabindex: "0" }, table);

function factsOf(row) {
  const facts = [["state", row.state], ["loss", formatLoss(row.loss)], ["executor", row.executor ?? "-"],
    ["memory, planned", `${formatGib(row.peak_bytes)}, ${formatGib(row.planned_bytes)}`], ["opened", formatTime(row.opened_at)]];
  if (row.closed_at !== null) facts.push(["closed", formatTime(row.closed_at)]);
  const list = make("dl", { className: "facts" },
    ...facts.map(([label, text]) => make("div", {}, make("dt", { text: label }), make("dd", { text: String(text) }))));
  return row.cause ? make("div", {}, list, make("p", { text: row.cause, className: row.state === "failed" ? "bad" : "muted" })) : list;
}

function reportTable(metrics) {
  const names = [...new Set(metrics.flatMap((line) => Object.keys(line)))].filter((name) => name !== "time");
  const text = (name, value) => (name.endsWith("loss") ? formatLoss(value) : name.endsWith("bytes") ? formatGib(value) : formatValue(value));
  return makeTable(names, metrics.map((line) => names.map((name) => text(name, line[name]))), new Set(names.keys()));
}

function eventTable(events) {
  return makeTable(["time", "event", "executor", "reason"], events.map((event) =>
    [formatTime(event.time), String(event.event), String(event.executor ?? ""), String(event.reason ?? "")]));
}
