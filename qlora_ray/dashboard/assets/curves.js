// Learning curves of all trials, the end of each marked by how it ended; and one trial's losses.

import { Figure, colours, drawMark, linearTicks, makeScale, nearest, setPointer } from "./canvas.js";
import { find, setText } from "./dom.js";
import { formatCount, formatLoss, formatNumber, formatValue } from "./format.js";
import { MARKS, STATES, shortName } from "./store.js";

const HEIGHT = 380;
// Drawn from the back to the front, as in the report.
const ORDER = ["pruned", "interrupted", "running", "failed", "complete"];
// With more trials than this lines are thinner, and with more than that one sees through them.
const MANY = 60;
const DENSE = 200;

export function describeTrial(trial) {
  const lines = [`trial ${trial.id}, ${trial.state}`];
  if (trial.cause) lines.push(trial.cause);
  if (trial.loss !== null) lines.push(`loss ${formatLoss(trial.loss)} at report ${trial.reports.length}`);
  for (const [path, value] of Object.entries(trial.params)) lines.push(`${shortName(path)} ${formatValue(value)}`);
  return lines.join("\n");
}

export function stateColour(state) {
  const palette = colours();
  return { complete: palette.muted, failed: palette.bad }[state] ?? palette.rest;
}

export class Curves {
  constructor(store, { shows, open }) {
    this.store = store;
    this.shows = shows;
    this.points = [];
    this.figure = new Figure(find("curve-figure"), (figure) => this.draw(figure));
    setPointer(this.figure.canvas, {
      pick: (x, y) => nearest(this.points, x, y),
      describe: ({ trial, report }) => `${describeTrial(trial)}\nhere: report ${report[0]}, loss ${formatLoss(report[2])}`,
      open: ({ trial }) => open(trial.id),
    });
  }

  draw(figure) {
    const trials = [...this.store.trials.values()].filter((trial) => this.shows(trial) && trial.reports.length);
    const { context, width } = figure.begin(trials.length ? HEIGHT : 60);
    const palette = colours();
    this.points = [];
    this.describe(trials);
    if (!trials.length) {
      context.fillStyle = palette.muted;
      context.fillText("No trial has reported a loss yet.", 0, 30);
      return;
    }
    const bySamples = trials.every((trial) => trial.reports.every((report) => report[1] !== null));
    const x = (report) => report[bySamples ? 1 : 0];
    const left = 52;
    const [right, top, bottom] = [width - 14, 26, HEIGHT - 40];
    const reports = trials.flatMap((trial) => trial.reports);
    const last = reports.reduce((most, report) => Math.max(most, x(report)), 1);
    const scale = makeScale(reports.map((report) => report[2] ?? NaN), bottom, top);
    const across = (value) => left + (value / last) * (right - left);
    drawAxes(context, { scale, across, last, left, right, top, bottom, bySamples });
    const best = this.store.bestId;
    const isMany = trials.length > MANY;
    for (const state of ORDER)
      for (const trial of trials) if (trial.state === state && trial.id !== best) this.drawTrial(context, trial, {
        x, across, scale, colour: stateColour(state), width: isMany ? 0.7 : 1.2, size: isMany ? 3 : 4,
        alpha: trials.length > DENSE ? 0.45 : 1 });
    const chosen = trials.find((trial) => trial.id === best);
    if (chosen) this.drawTrial(context, chosen, { x, across, scale, colour: palette.accent, width: 2.4, size: 5, alpha: 1 });
  }

  drawTrial(context, trial, { x, across, scale, colour, width, size, alpha }) {
    const points = trial.reports.filter((report) => report[2] !== null)
      .map((report) => ({ x: across(x(report)), y: scale.at(report[2]), trial, report }));
    if (!points.length) return;
    context.globalAlpha = alpha;
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.beginPath();
    points.forEach((point, at) => (at ? context.lineTo(point.x, point.y) : context.moveTo(point.x, point.y)));
    context.stroke();
    const end = points[points.length - 1];
    drawMark(context, trial.state, end.x, end.y, colour, size);
    context.globalAlpha = 1;
    this.points.push(...points);
  }

  describe(trials) {
    const counts = STATES.map((state) => [state, trials.filter((trial) => trial.state === state).length]);
    const ends = counts.filter(([, count]) => count).map(([state, count]) => `${MARKS[state]} ${state} ${formatCount(count)}`);
    const causes = new Map();
    for (const trial of trials)
      if (trial.cause && trial.state !== "complete") causes.set(trial.cause, (causes.get(trial.cause) ?? 0) + 1);
    const common = [...causes].sort((one, two) => two[1] - one[1]).slice(0, 4)
      .map(([cause, count]) => `${cause} (${formatCount(count)})`);
    const best = trials.some((trial) => trial.id === this.store.bestId) ? ` In colour: trial ${this.store.bestId}.` : "";
    const why = common.length ? ` Why they stopped: ${common.join("; ")}.` : "";
    const words = trials.length ? `Validation loss in nats per trained token, at equal samples seen. Each line ends in
      its state: ${ends.join(", ")}.${best}${why} Point at a line to read it; a click opens its trial.` : "";
    setText(find("curve-caption"), words.replace(/\s+/g, " "));
    this.figure.canvas.setAttribute("aria-label", `Learning curves. ${words.replace(/\s+/g, " ")}`);
  }
}

function drawAxes(context, { scale, across, last, left, right, top, bottom, bySamples }) {
  const palette = colours();
  context.lineWidth = 1;
  context.textBaseline = "middle";
  for (const [value, label] of scale.ticks) {
    const y = scale.at(value);
    context.strokeStyle = palette.rule;
    context.beginPath();
    context.moveTo(left, y);
    context.lineTo(right, y);
    context.stroke();
    context.fillStyle = palette.muted;
    context.textAlign = "right";
    context.fillText(label, left - 6, y);
  }
  context.textAlign = "center";
  for (const [value] of linearTicks(0, last, right - left < 420 ? 3 : 6))
    if (Number.isInteger(value)) context.fillText(formatCount(value), across(value), bottom + 14);
  context.fillText(bySamples ? "training samples seen" : "report", (left + right) / 2, bottom + 31);
  context.textAlign = "left";
  context.fillText(`validation loss${scale.isLog ? " (log scale)" : ""}`, 0, top - 16);
}

// One trial's training and validation loss by step, on a canvas of the trial's own window.
export function drawLosses(figure, files) {
  const reports = files.metrics.filter((line) => Number.isFinite(line.eval_loss)).map((line) => [line.step, line.eval_loss]);
  const training = files.train_losses.filter((point) => Number.isFinite(point[1]));
  const all = [...training, ...reports];
  const { context, width } = figure.begin(all.length ? 240 : 24);
  const palette = colours();
  context.fillStyle = palette.muted;
  if (!all.length) {
    context.fillText("No losses yet.", 0, 14);
    return;
  }
  const [left, right, top, bottom] = [52, width - 14, 10, 206];
  const last = all.reduce((most, [step]) => Math.max(most, step ?? 0), 1);
  const scale = makeScale(all.map(([, loss]) => loss), bottom, top);
  const across = (step) => left + (step / last) * (right - left);
  context.textBaseline = "middle";
  for (const [value, label] of scale.ticks) {
    context.textAlign = "right";
    context.fillText(label, left - 6, scale.at(value));
  }
  context.textAlign = "center";
  for (const [value] of linearTicks(0, last, 4)) context.fillText(formatNumber(value), across(value), bottom + 14);
  const line = (points, colour, thickness) => {
    context.strokeStyle = colour;
    context.lineWidth = thickness;
    context.beginPath();
    points.forEach(([step, loss], at) => context[at ? "lineTo" : "moveTo"](across(step), scale.at(loss)));
    context.stroke();
  };
  line(training, palette.rest, 1.2);
  line(reports, palette.accent, 2);
  for (const [step, loss] of reports) drawMark(context, "complete", across(step), scale.at(loss), palette.accent);
}
