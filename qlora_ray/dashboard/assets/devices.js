// Executors with their memory and use against the plan, the answers of winner and base, and the other sweeps.

import { fillBar, find, make, makeBar, setClass, setText, show } from "./dom.js";
import { formatCount, formatGib, formatLoss, formatShare, plural } from "./format.js";
import { STATES } from "./store.js";

const DEVICE_COLUMNS = ["executor", "device", "host", "state", "slots used", "memory", "", "busy", ""];
const DEVICE_NUMBERS = new Set([0]);

export function renderDevices(store) {
  const executors = store.live?.executors ?? [];
  const rows = executors.length ? executors.map(liveRow) : recordedRows(store);
  const table = find("device-table");
  const header = table.tHead.rows[0];
  if (!header.cells.length)
    header.append(...DEVICE_COLUMNS.map((text, at) => make("th", { text, scope: "col",
      className: DEVICE_NUMBERS.has(at) ? "number" : "" })));
  const body = table.tBodies[0];
  while (body.rows.length > rows.length) body.lastChild.remove();
  while (body.rows.length < rows.length) body.append(makeDeviceRow());
  rows.forEach((row, at) => fillDeviceRow(body.rows[at], row));
  show(table, rows.length > 0);
  const isLive = executors.length > 0;
  const words = !rows.length ? "Nothing is known of the devices yet."
    : isLive ? `Bar: memory in use of what the device has; tick: what the plan says. Busy: the share of an executor's time
      since its first step in which it trained, evaluated or scored.${store.isRunning ? "" : " These are the last figures."}`
      : "Bar: the highest measured memory of an executor's trials; tick: what the plan says.";
  setText(find("device-note"), words.replace(/\s+/g, " "));
}

function liveRow(one) {
  const gpus = one.gpu_ids?.length ? ` (GPU ${one.gpu_ids.join(", ")})` : "";
  const memory = one.memory_bytes === null ? "-" : `${formatGib(one.memory_bytes)} of ${formatGib(one.total_memory_bytes)}`;
  return {
    texts: [String(one.executor), `${one.device || one.device_class}${gpus}`, one.hostname, one.state,
      `${one.trials?.length ?? 0} of ${one.slots}`, `${memory}, planned ${formatGib(one.planned_memory_bytes)}`,
      formatShare(one.busy_share)],
    memory: { value: one.memory_bytes, total: one.total_memory_bytes, planned: one.planned_memory_bytes },
    busy: one.busy_share === null ? null : { value: one.busy_share, total: 1 },
  };
}

// A sweep without live figures: what its trials' records say of memory.
function recordedRows(store) {
  const found = new Map();
  for (const trial of store.trials.values()) {
    if (trial.executor === null || trial.peak_bytes === null) continue;
    const one = found.get(trial.executor) ?? { peak: 0, planned: null, count: 0 };
    found.set(trial.executor, { peak: Math.max(one.peak, trial.peak_bytes), planned: trial.planned_bytes ?? one.planned,
      count: one.count + 1 });
  }
  return [...found].sort((one, two) => one[0] - two[0]).map(([executor, { peak, planned, count }]) => ({
    texts: [String(executor), "-", hostOf(store, executor), "-", plural(count, "trial"), `${formatGib(peak)} at most, planned ${formatGib(planned)}`, "-"],
    memory: { value: peak, total: 1.2 * Math.max(peak, planned ?? 0), planned },
    busy: null,
  }));
}

// The name of its lanes begins with the host.
function hostOf(store, executor) {
  const name = Object.keys(store.slots).find((one) => one.endsWith(` · executor ${executor}`));
  return name?.slice(0, name.lastIndexOf(" · ")) ?? "-";
}

function makeDeviceRow() {
  const cells = DEVICE_COLUMNS.map((_, at) => make("td", { className: DEVICE_NUMBERS.has(at) ? "number" : "" }));
  cells[6].append(makeBar());
  cells[8].append(makeBar());
  return make("tr", {}, ...cells);
}

function fillDeviceRow(row, { texts, memory, busy }) {
  [0, 1, 2, 3, 4, 5, 7].forEach((column, at) => setText(row.cells[column], texts[at]));
  setClass(row.cells[3], texts[3] === "failed" ? "failed" : "");
  fillBar(row.cells[6].firstChild, memory);
  show(row.cells[8].firstChild, busy !== null);
  if (busy !== null) fillBar(row.cells[8].firstChild, busy);
}

export function renderAnswers({ answers, head }) {
  const note = answers.length ? `The first ${plural(answers.length, "row")} that both answered, of best/answers.jsonl.`
    : "There are none yet: they are written when the winner has been scored beside its base.";
  setText(find("answer-note"), note);
  find("answer-list").replaceChildren(...answers.map((one) => {
    const texts = [["expected", one.expected], ["base", one.base], [`trial ${head?.winner ?? ""}`, one.winner]];
    const boxes = texts.map(([whose, text]) => make("div", {}, make("h3", { text: whose }), make("p", { text })));
    return make("div", { className: "answer" }, make("p", { text: `row ${one.row}`, className: "muted" }),
      make("div", { className: "texts" }, ...boxes));
  }));
}

export function renderOthers({ others }) {
  setText(find("other-note"), others.length ? "The one that was begun last comes first; a name opens its page."
    : "There are no others.");
  const table = find("other-table");
  show(table, others.length > 0);
  const columns = ["sweep", "state", "base", "objective", "best", "loss", "verdict", "trials"];
  if (!table.tHead.rows[0].cells.length)
    table.tHead.rows[0].append(...columns.map((text) => make("th", { text, scope: "col", className: text === "loss" ? "number" : "" })));
  table.tBodies[0].replaceChildren(...others.map((one) => {
    const counts = STATES.filter((state) => one.counts[state]).map((state) => `${formatCount(one.counts[state])} ${state}`);
    const query = new URLSearchParams(window.location.search);
    query.set("sweep", one.name);
    const link = make("a", { text: one.name, href: `?${query}` });
    const texts = [one.status, one.base ?? "-", one.objective ?? "-", one.best ?? "-", formatLoss(one.best_loss),
      one.verdict ?? "-", counts.join(", ") || "-"];
    return make("tr", {}, make("td", {}, link), ...texts.map((text, at) =>
      make("td", { text, className: at === 4 ? "number" : "" })));
  }));
}
