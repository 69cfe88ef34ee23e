// Executors as rows, their slots as lanes, and the trials in them over time.

import { Figure, colours, linearTicks, setPointer, shortenTo } from "./canvas.js";
import { find, setText } from "./dom.js";
import { formatDuration, plural } from "./format.js";
import { describeTrial } from "./curves.js";

const MANY_LANES = 24;
const GAP = 6;

export class Slots {
  constructor(store, { shows, open }) {
    this.store = store;
    this.shows = shows;
    this.boxes = [];
    this.figure = new Figure(find("slot-figure"), (figure) => this.draw(figure));
    setPointer(this.figure.canvas, {
      pick: (x, y) => this.boxes.findLast((box) => x >= box.x && x <= box.x + box.width && y >= box.y && y <= box.y + box.height),
      describe: ({ span, trial }) => `${span.executor}, slot ${span.slot + 1}\n${formatDuration(span.start_s)} to
        ${span.end_s === null ? "now" : formatDuration(span.end_s)}`.replace(/\n\s+/, " ") +
        `\n${trial ? describeTrial(trial) : `trial ${span.trial}`}`,
      open: ({ span }) => open(span.trial),
    });
  }

  lanes() {
    const names = Object.keys(this.store.slots).sort((one, two) => one.localeCompare(two, "en", { numeric: true }));
    const count = names.reduce((sum, name) => sum + this.store.slots[name], 0);
    const height = count > MANY_LANES ? 13 : 22;
    const places = new Map();
    let y = 4;
    for (const name of names) {
      places.set(name, y);
      y += this.store.slots[name] * height + GAP;
    }
    return { names, places, height, bottom: y, count };
  }

  draw(figure) {
    const { names, places, height, bottom, count } = this.lanes();
    const { context, width } = figure.begin(names.length ? bottom + 34 : 40);
    const palette = colours();
    this.boxes = [];
    context.textBaseline = "middle";
    context.fillStyle = palette.muted;
    this.describe(names.length, count);
    if (!names.length) {
      context.fillText("No executor is ready yet.", 0, 20);
      return;
    }
    const left = Math.min(190, Math.round(width * 0.28));
    const end = Math.max(1, this.store.now());
    const across = (seconds) => left + (seconds / end) * (width - 12 - left);
    for (const name of names) {
      const y = places.get(name);
      context.fillStyle = palette.ink;
      context.textAlign = "left";
      context.fillText(shortenTo(context, shortLabel(name, width), left - 8), 0, y + height / 2);
      context.fillStyle = palette.panel;
      for (let slot = 0; slot < this.store.slots[name]; slot += 1)
        context.fillRect(left, y + slot * height, width - 12 - left, height - 2);
    }
    for (const span of this.store.spans.values()) this.drawSpan(context, span, { places, height, across, end });
    drawTimeAxis(context, { end, across, y: bottom, width });
  }

  drawSpan(context, span, { places, height, across, end }) {
    const trial = this.store.trials.get(span.trial);
    if (!places.has(span.executor) || (trial && !this.shows(trial))) return;
    const palette = colours();
    const [x, y] = [across(span.start_s), places.get(span.executor) + span.slot * height];
    const width = Math.max(1, across(span.end_s ?? end) - x - 0.5);
    const isBest = span.trial === this.store.bestId;
    context.fillStyle = isBest ? palette.accent : trial?.state === "failed" ? palette.bad : palette.rest;
    context.globalAlpha = isBest || trial?.state === "failed" || span.end_s === null ? 1 : 0.6;
    context.fillRect(x, y, width, height - 2);
    context.globalAlpha = 1;
    if (width > 40 && height > 16) {
      context.fillStyle = isBest || trial?.state === "failed" ? palette.paper : palette.ink;
      context.textAlign = "center";
      context.fillText(span.trial + (span.end_s === null ? " …" : ""), x + width / 2, y + height / 2 - 0.5);
    }
    this.boxes.push({ x, y, width, height: height - 2, span, trial });
  }

  describe(numExecutors, numSlots) {
    const words = numExecutors ? `${plural(numExecutors, "executor")} with ${plural(numSlots, "slot")}; a bar is a trial
      in a slot, and where there is none the slot waited. In colour: the best trial; red: failed; pale: ended.` : "";
    setText(find("slot-caption"), words.replace(/\s+/g, " "));
    this.figure.canvas.setAttribute("aria-label", `Slots over time. ${words.replace(/\s+/g, " ")}`);
  }
}

// A narrow page leaves the host out: the row's number is what tells rows apart.
function shortLabel(name, width) {
  return width < 600 ? name.replace(/^.* · /, "") : name;
}

function drawTimeAxis(context, { end, across, y, width }) {
  const [unit, seconds] = end > 3 * 3600 ? ["hours", 3600] : end > 120 ? ["minutes", 60] : ["seconds", 1];
  context.fillStyle = colours().muted;
  context.textAlign = "center";
  for (const [value, label] of linearTicks(0, end / seconds, width < 600 ? 3 : 7))
    context.fillText(label, across(value * seconds), y + 8);
  context.textAlign = "right";
  context.fillText(`${unit} since the sweep began`, width - 12, y + 24);
}
