// Drawing: canvases as sharp as the screen, the page's colours, scales and ticks, and words under the pointer.

import { find, show } from "./dom.js";
import { formatNumber } from "./format.js";

// Losses that differ by more than this are drawn on a log scale, as in the report.
const LOG_RATIO = 8;
const MAX_LOG_TICKS = 6;
const NEAR_PX = 14;
// A figure of a thousand lines takes 30 ms to draw; twice a second is often enough for an eye.
const REDRAW_MS = 500;

let known = null;
const scheme = window.matchMedia("(prefers-color-scheme: dark)");
scheme.addEventListener("change", () => { known = null; });

export function colours() {
  if (known === null) {
    const style = getComputedStyle(document.documentElement);
    const names = ["paper", "panel", "ink", "muted", "rule", "rest", "accent", "second", "good", "bad", "warn"];
    known = Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
  }
  return known;
}

// A figure that is drawn anew when it has changed and can be seen.
export class Figure {
  constructor(canvas, draw) {
    this.canvas = canvas;
    this.drawing = draw;
    this.isDirty = true;
    this.isVisible = false;
    this.width = 0;
    this.drawnAt = -REDRAW_MS;
    this.timer = null;
    new IntersectionObserver((entries) => {
      this.isVisible = entries.some((entry) => entry.isIntersecting);
      this.draw();
    }, { rootMargin: "200px" }).observe(canvas);
    new ResizeObserver(() => {
      if (Math.round(canvas.getBoundingClientRect().width) !== this.width) this.refresh();
    }).observe(canvas.parentElement);
    scheme.addEventListener("change", () => this.refresh());
  }

  refresh() {
    this.isDirty = true;
    if (this.timer !== null) return;
    const wait = Math.max(0, this.drawnAt + REDRAW_MS - performance.now());
    this.timer = setTimeout(() => {
      this.timer = null;
      this.draw();
    }, wait);
  }

  draw() {
    if (!this.isDirty || !this.isVisible) return;
    this.isDirty = false;
    this.drawnAt = performance.now();
    this.drawing(this);
  }

  // Sets the size in CSS px, and returns the context and the width.
  begin(height, minWidth = 0) {
    const { canvas } = this;
    canvas.style.minWidth = `${minWidth}px`;
    canvas.style.height = `${height}px`;
    const width = Math.max(minWidth, Math.round(canvas.getBoundingClientRect().width));
    this.width = width;
    const ratio = window.devicePixelRatio || 1;
    const [pixelWidth, pixelHeight] = [Math.round(width * ratio), Math.round(height * ratio)];
    if (canvas.width !== pixelWidth) canvas.width = pixelWidth;
    if (canvas.height !== pixelHeight) canvas.height = pixelHeight;
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    context.font = `12px ${getComputedStyle(document.body).fontFamily}`;
    context.lineJoin = "round";
    return { context, width };
  }
}

// Maps values to px, on a log scale where they are far apart.
export function makeScale(values, from, to, { isTight = false } = {}) {
  const finite = values.filter((value) => Number.isFinite(value));
  let low = finite.reduce((a, b) => Math.min(a, b), Infinity);
  let high = finite.reduce((a, b) => Math.max(a, b), -Infinity);
  if (low > high) [low, high] = [0, 1];
  const isLog = low > 0 && high / low > LOG_RATIO;
  if (low === high) [low, high] = [low - (Math.abs(low) / 2 || 1), high + (Math.abs(high) / 2 || 1)];
  const bend = isLog ? Math.log10 : (value) => value;
  const pad = isTight ? 0 : 0.05 * (bend(high) - bend(low));
  const [first, last] = [bend(low) - pad, bend(high) + pad];
  const at = (value) => from + ((bend(value) - first) / (last - first)) * (to - from);
  return { at, isLog, ticks: isLog ? logTicks(low, high) : linearTicks(low, high) };
}

export function linearTicks(low, high, count = 6) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough || 1));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((one) => one >= rough) ?? power;
  const ticks = [];
  // Counted, and not by the value alone: where values differ in their last digits only, adding 1 may change nothing.
  const first = Math.ceil(low / step - 1e-9);
  for (let at = 0; at <= 2 * count && (first + at) * step <= high + step * 1e-9; at += 1) ticks.push((first + at) * step || 0);
  return ticks.map((value) => [value, formatNumber(value)]);
}

function logTicks(low, high) {
  const values = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1)
    for (const step of [1, 2, 5]) values.push(step * 10 ** power);
  const inside = values.filter((value) => value >= low && value <= high);
  const powers = inside.filter((value) => Number.isInteger(Math.round(Math.log10(value) * 1e6) / 1e6));
  return (inside.length > MAX_LOG_TICKS ? powers : inside).map((value) => [value, formatNumber(value)]);
}

// The mark at the end of a trial's line, as the report draws it.
export function drawMark(context, state, x, y, colour, size = 4) {
  context.strokeStyle = context.fillStyle = colour;
  context.lineWidth = 1.6;
  context.beginPath();
  if (state === "complete" || state === "running") context.arc(x, y, size - 0.5, 0, 2 * Math.PI);
  else if (state === "interrupted") context.rect(x - size + 0.5, y - size + 0.5, 2 * size - 1, 2 * size - 1);
  else if (state === "failed") {
    context.moveTo(x - size, y - size + 1);
    context.lineTo(x + size, y - size + 1);
    context.lineTo(x, y + size);
    context.closePath();
  } else {
    context.moveTo(x - size + 0.5, y - size + 0.5);
    context.lineTo(x + size - 0.5, y + size - 0.5);
    context.moveTo(x + size - 0.5, y - size + 0.5);
    context.lineTo(x - size + 0.5, y + size - 0.5);
  }
  if (state === "complete" || state === "failed") context.fill();
  else context.stroke();
}

export function shortenTo(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  let end = text.length;
  while (end > 1 && context.measureText(`${text.slice(0, end)}…`).width > width) end -= 1;
  return `${text.slice(0, end)}…`;
}

// Shows words beside the pointer, and opens what it points at on a click. `pick` finds it at (x, y) in CSS px.
export function setPointer(canvas, { pick, describe, open }) {
  const tip = find("tip");
  const pickAt = (event) => {
    const box = canvas.getBoundingClientRect();
    return pick(event.clientX - box.left, event.clientY - box.top);
  };
  canvas.addEventListener("pointermove", (event) => {
    const found = pickAt(event);
    show(tip, Boolean(found));
    canvas.style.cursor = found ? "pointer" : "";
    if (!found) return;
    tip.textContent = describe(found);
    const { width, height } = tip.getBoundingClientRect();
    const left = event.clientX + 14 + width > window.innerWidth ? event.clientX - 14 - width : event.clientX + 14;
    tip.style.left = `${Math.max(4, left)}px`;
    tip.style.top = `${Math.max(4, Math.min(event.clientY + 12, window.innerHeight - height - 4))}px`;
  });
  canvas.addEventListener("pointerleave", () => show(tip, false));
  canvas.addEventListener("click", (event) => {
    const found = pickAt(event);
    if (found) open(found);
  });
}

// The nearest of points {x, y}; null if none is near.
export function nearest(points, x, y) {
  let [best, least] = [null, NEAR_PX ** 2];
  for (const point of points) {
    const distance = (point.x - x) ** 2 + (point.y - y) ** 2;
    if (distance < least) [best, least] = [point, distance];
  }
  return best;
}
