// Elements made of text. Nothing here takes markup: what a sweep says stays text.

export const find = (id) => document.getElementById(id);

export function make(tag, options = {}, ...children) {
  const element = document.createElement(tag);
  const { text, className, ...attributes } = options;
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// Writes only what is new: the browser lays out nothing for a text that stays.
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function setClass(element, name) {
  if (element.className !== name) element.className = name;
}

export function show(element, isShown) {
  if (element.hidden === isShown) element.hidden = !isShown;
}

// A table of texts: header cells, rows of cells, and the columns that are numbers.
export function makeTable(header, rows, numeric = new Set()) {
  const kind = (column) => (numeric.has(column) ? { className: "number" } : {});
  const head = make("tr", {}, ...header.map((text, at) => make("th", { text, scope: "col", ...kind(at) })));
  const body = rows.map((row) => make("tr", {}, ...row.map((text, at) => make("td", { text, ...kind(at) }))));
  return make("table", {}, make("thead", {}, head), make("tbody", {}, ...body));
}

// A bar from 0 to `total` that is filled up to `value`, with a tick at `planned`.
export function fillBar(bar, { value, total, planned }) {
  const [fill, tick] = bar.children;
  const share = (number) => (total ? Math.min(1, number / total) : 0);
  fill.style.width = `${100 * share(value ?? 0)}%`;
  setClass(fill, planned && value > planned ? "over" : "");
  show(tick, Boolean(planned && total));
  if (planned && total) tick.style.left = `calc(${100 * share(planned)}% - 1px)`;
}

export function makeBar() {
  return make("div", { className: "bar", "aria-hidden": "true" }, make("i"), make("b"));
}
