// Every trial as a line through its parameters to the loss it reached, and how much each parameter moved the loss.

import { Figure, colours, drawMark, makeScale, nearest, setPointer, shortenTo } from "./canvas.js";
import { describeTrial, stateColour } from "./curves.js";
import { fillBar, find, make, makeBar, setText } from "./dom.js";
import { formatShare, plural } from "./format.js";

const HEIGHT = 340;
// Room per axis, so that names and values do not run into each other.
const AXIS_PX = 112;
// Of the first axis's labels, and of half the last one's name.
const [LEFT, RIGHT] = [84, 40];
const ORDER = ["pruned", "interrupted", "running", "failed", "complete"];

export class Parallel {
  constructor(store, { shows, open }) {
    this.store = store;
    this.shows = shows;
    this.points = [];
    this.figure = new Figure(find("parallel-figure"), (figure) => this.draw(figure));
    setPointer(this.figure.canvas, {
      pick: (x, y) => nearest(this.points, x, y),
      describe: ({ trial }) => describeTrial(trial),
      open: ({ trial }) => open(trial.id),
    });
  }

  draw(figure) {
    const { axes } = this.store;
    const trials = [...this.store.trials.values()]
      .filter((trial) => this.shows(trial) && trial.loss !== null && trial.places.length === axes.length);
    const isEmpty = !axes.length || !trials.length;
    const { context, width } = figure.begin(isEmpty ? 40 : HEIGHT, isEmpty ? 0 : AXIS_PX * (axes.length + 1) + 40);
    const palette = colours();
    this.points = [];
    context.textBaseline = "middle";
    context.fillStyle = palette.muted;
    this.describe(isEmpty ? [] : trials);
    if (isEmpty) {
      context.fillText("No trial has reported a loss yet.", 0, 20);
      return;
    }
    const [top, bottom] = [44, HEIGHT - 14];
    const loss = makeScale(trials.map((trial) => trial.loss), bottom, top, { isTight: true });
    // Labels stand left of their axis.
    const x = (at) => LEFT + (at * (width - LEFT - RIGHT)) / axes.length;
    const y = (place) => bottom - place * (bottom - top);
    const draw = (trial, colour, thickness) => this.drawTrial(context, trial, { x, y, loss, colour, thickness });
    const thin = trials.length > 60 ? 0.6 : 1.1;
    const best = this.store.bestId;
    for (const state of ORDER)
      for (const trial of trials) if (trial.state === state && trial.id !== best) draw(trial, stateColour(state), thin);
    const chosen = trials.find((trial) => trial.id === best);
    if (chosen) draw(chosen, palette.accent, 2.6);
    axes.forEach((axis, at) => drawAxis(context, x(at), axis.name, axis.ticks.map(([place, label]) => [y(place), label]), { top, bottom }));
    const ticks = loss.ticks.map(([value, label]) => [loss.at(value), label]);
    drawAxis(context, x(axes.length), `loss${loss.isLog ? " (log)" : ""}`, ticks, { top, bottom });
  }

  drawTrial(context, trial, { x, y, loss, colour, thickness }) {
    const places = [...trial.places.map((place, at) => (place === null ? null : [x(at), y(place)])),
      [x(trial.places.length), loss.at(trial.loss)]];
    context.globalAlpha = thickness < 1 ? 0.6 : 1;
    context.strokeStyle = colour;
    context.lineWidth = thickness;
    context.beginPath();
    let isBroken = true;
    for (const place of places) {
      if (place !== null) context[isBroken ? "moveTo" : "lineTo"](...place);
      isBroken = place === null;
    }
    context.stroke();
    context.globalAlpha = 1;
    for (const place of places) if (place !== null) this.points.push({ x: place[0], y: place[1], trial });
    if (thickness > 2) drawMark(context, "complete", ...places[places.length - 1], colour, 4);
  }

  describe(trials) {
    const best = trials.some((trial) => trial.id === this.store.bestId) ? ` In colour: trial ${this.store.bestId}.` : "";
    const words = trials.length ? `Each line is a trial (${plural(trials.length, "trial")}) through its parameters to its last loss.${best}
      Losses of trials that were stopped early are of fewer samples.` : "";
    setText(find("parallel-caption"), words.replace(/\s+/g, " "));
    this.figure.canvas.setAttribute("aria-label", `Trials as lines through their parameters. ${words.replace(/\s+/g, " ")}`);
  }
}

function drawAxis(context, x, name, ticks, { top, bottom }) {
  const palette = colours();
  context.strokeStyle = palette.muted;
  context.lineWidth = 1;
  context.beginPath();
  context.moveTo(x, top);
  context.lineTo(x, bottom);
  context.stroke();
  context.textAlign = "right";
  for (const [y, text] of ticks) {
    const label = shortenTo(context, text, AXIS_PX - 34);
    const width = context.measureText(label).width;
    // A label stands over the lines, and must be read.
    context.fillStyle = palette.paper;
    context.globalAlpha = 0.75;
    context.fillRect(x - 9 - width, y - 8, width + 4, 16);
    context.globalAlpha = 1;
    context.fillStyle = palette.muted;
    context.fillText(label, x - 7, y);
  }
  context.textAlign = "center";
  context.fillStyle = palette.ink;
  context.fillText(shortenTo(context, name, AXIS_PX - 8), Math.max(x, 54), top - 24);
}

export function renderImportance({ importance }) {
  const place = find("importance");
  const shares = Object.entries(importance?.shares ?? {});
  const largest = shares.reduce((most, [, share]) => Math.max(most, share), 0);
  place.replaceChildren(...shares.flatMap(([name, share]) => {
    const bar = makeBar();
    fillBar(bar, { value: share, total: largest });
    return [make("span", { text: name }), bar, make("span", { text: formatShare(share), className: "number" })];
  }));
  const waiting = "Parameter importance is told when enough trials have ended.";
  setText(find("importance-note"), importance?.note || waiting);
}
