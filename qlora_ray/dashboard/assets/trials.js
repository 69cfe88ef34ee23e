// The table of all trials: a filter by state, sorting, and pages, so that 1,000 trials stay quick.

import { find, make, setClass, setText, show } from "./dom.js";
import { formatCount, formatLoss, formatValue } from "./format.js";
import { MARKS, STATES, shortName } from "./store.js";

const PAGE_SIZE = 50;
const missingLast = (value) => (value === null || value === undefined || Number.isNaN(value) ? null : value);

// Name, what is shown, what it is sorted by, and whether it is a number.
const FIXED = [
  { name: "trial", text: (trial) => trial.id, key: (trial) => Number(trial.id), kind: "id" },
  { name: "state", text: (trial, live) => stateWords(trial, live), key: (trial) => STATES.indexOf(trial.state),
    kind: "state" },
  { name: "reports", text: (trial) => String(trial.reports.length), key: (trial) => trial.reports.length, kind: "number" },
  { name: "loss", text: (trial) => formatLoss(trial.loss), key: (trial) => trial.loss, kind: "number" },
  { name: "tokens/s", text: (trial, live) => formatCount(live?.tokens_per_s ?? trial.tokens_per_s),
    key: (trial, live) => live?.tokens_per_s ?? trial.tokens_per_s, kind: "number" },
  { name: "executor", text: (trial) => trial.executor === null ? "-" : String(trial.executor),
    key: (trial) => trial.executor, kind: "number" },
];
// Of trials that run: shown while any does.
const LIVE = [
  { name: "step", text: (_, live) => stepWords(live), key: (_, live) => live?.step, kind: "number" },
  { name: "training loss", text: (_, live) => formatLoss(live?.train_loss), key: (_, live) => live?.train_loss,
    kind: "number" },
];
const CAUSE = { name: "why", text: (trial, _, store) => causeWords(trial, store), key: (trial) => trial.cause, kind: "words" };

function stateWords(trial, live) {
  const doing = live && live.state ? `, ${live.state}` : "";
  return `${MARKS[trial.state]} ${trial.state}${doing}`;
}

function stepWords(live) {
  if (!live) return "";
  return live.num_steps ? `${formatCount(live.step)}/${formatCount(live.num_steps)}` : formatCount(live.step);
}

function causeWords(trial, store) {
  const words = [];
  if (trial.id === store.head?.winner) words.push("winner");
  else if (trial.id === store.head?.best) words.push(store.head.is_best_complete ? "best so far" : "lowest so far");
  if (trial.cause) words.push(trial.cause);
  if (trial.resumed_from) words.push(`goes on with ${trial.resumed_from}`);
  if (trial.seed_of) words.push(`a seed of ${trial.seed_of}`);
  if (trial.cloned_from) words.push(`clone of ${trial.cloned_from} at report ${trial.cloned_at}`);
  return words.join("; ");
}

export class TrialTable {
  constructor(store, { open, onFilter }) {
    this.store = store;
    this.open = open;
    this.onFilter = onFilter;
    this.state = "all";
    // A leaderboard: complete trials first, by loss; then those that got further.
    this.sort = null;
    this.page = 0;
    this.rows = new Map();
    this.columns = [];
    this.table = find("trial-table");
    this.body = this.table.tBodies[0];
    this.makePager();
  }

  get isFiltered() {
    return this.state !== "all";
  }

  shows(trial) {
    return this.state === "all" || trial.state === this.state;
  }

  render() {
    this.renderFilters();
    this.renderHeader();
    const trials = [...this.store.trials.values()].filter((trial) => this.shows(trial)).sort(this.comparison());
    const pages = Math.max(1, Math.ceil(trials.length / PAGE_SIZE));
    this.page = Math.min(this.page, pages - 1);
    const shown = trials.slice(this.page * PAGE_SIZE, (this.page + 1) * PAGE_SIZE);
    this.renderRows(shown);
    this.renderPager(trials.length, pages);
  }

  renderFilters() {
    const place = find("filters");
    if (!place.children.length)
      for (const state of ["all", ...STATES]) {
        const button = make("button", { type: "button" });
        button.addEventListener("click", () => {
          this.state = state;
          this.page = 0;
          this.render();
          this.onFilter();
        });
        place.append(button);
      }
    const counts = this.store.head?.counts ?? {};
    ["all", ...STATES].forEach((state, at) => {
      const button = place.children[at];
      const count = state === "all" ? this.store.trials.size : (counts[state] ?? 0);
      setText(button, `${state === "all" ? "" : `${MARKS[state]} `}${state} ${formatCount(count)}`);
      button.setAttribute("aria-pressed", String(this.state === state));
      button.disabled = count === 0 && this.state !== state;
    });
  }

  renderHeader() {
    const names = this.store.parameterNames;
    const parameters = names.map((path) => ({
      name: shortName(path),
      text: (trial) => (path in trial.params ? formatValue(trial.params[path]) : "-"),
      key: (trial) => trial.params[path],
      kind: [...this.store.trials.values()].some((trial) => typeof trial.params[path] === "string") ? "" : "number",
    }));
    const columns = [...FIXED, ...(this.store.isRunning ? LIVE : []), ...parameters, CAUSE];
    const signature = (list) => list.map((column) => `${column.name}:${column.kind}`).join("|");
    if (signature(columns) === signature(this.columns)) return;
    this.columns = columns;
    this.rows.clear();
    this.body.replaceChildren();
    const header = this.table.tHead.rows[0];
    header.replaceChildren(...columns.map((column) => this.makeHeaderCell(column)));
  }

  makeHeaderCell(column) {
    const button = make("button", { type: "button", text: column.name });
    const cell = make("th", { scope: "col", className: column.kind === "number" ? "number" : "" }, button);
    button.addEventListener("click", () => {
      const isAgain = this.sort?.name === column.name;
      this.sort = { name: column.name, sign: isAgain ? -this.sort.sign : 1 };
      for (const other of cell.parentElement.cells) other.removeAttribute("aria-sort");
      cell.setAttribute("aria-sort", this.sort.sign > 0 ? "ascending" : "descending");
      this.page = 0;
      this.render();
    });
    return cell;
  }

  comparison() {
    const column = this.sort && this.columns.find((one) => one.name === this.sort.name);
    if (!column) return compareRanks;
    const { sign } = this.sort;
    return (one, two) => {
      const [a, b] = [one, two].map((trial) => missingLast(column.key(trial, this.store.liveOf(trial))));
      // What is not there goes last either way.
      if (a === null || b === null) return (a === null) - (b === null) || Number(one.id) - Number(two.id);
      const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
      return sign * order || Number(one.id) - Number(two.id);
    };
  }

  renderRows(trials) {
    const focused = document.activeElement?.closest?.("#trial-table tbody tr")?.dataset.trial;
    const wanted = trials.map((trial) => this.fillRow(trial));
    const isSame = wanted.length === this.body.rows.length && wanted.every((row, at) => row === this.body.rows[at]);
    if (!isSame) {
      this.body.replaceChildren(...wanted);
      // A row that moves loses the keyboard's focus.
      if (focused) this.rows.get(focused)?.querySelector("button")?.focus({ preventScroll: true });
    }
    const kept = new Set(trials.map((trial) => trial.id));
    for (const id of this.rows.keys()) if (!kept.has(id)) this.rows.delete(id);
  }

  fillRow(trial) {
    let row = this.rows.get(trial.id);
    if (!row) {
      row = make("tr", { "data-trial": trial.id });
      for (const column of this.columns) {
        const cell = make("td", { className: column.kind === "id" ? "" : column.kind });
        if (column.kind === "id") {
          const button = make("button", { type: "button", className: "link" });
          button.addEventListener("click", () => this.open(trial.id));
          cell.append(button);
        }
        row.append(cell);
      }
      this.rows.set(trial.id, row);
    }
    const live = this.store.liveOf(trial);
    setClass(row, trial.id === this.store.bestId ? "best" : "");
    this.columns.forEach((column, at) => {
      const cell = row.cells[at];
      setText(column.kind === "id" ? cell.firstChild : cell, column.text(trial, live, this.store));
      if (column.kind === "state") setClass(cell, `state ${trial.state}`);
    });
    return row;
  }

  makePager() {
    const [back, words, on] = [make("button", { type: "button", text: "Back" }), make("span"),
      make("button", { type: "button", text: "Next" })];
    back.addEventListener("click", () => { this.page -= 1; this.render(); });
    on.addEventListener("click", () => { this.page += 1; this.render(); });
    find("pager").append(back, words, on);
  }

  renderPager(total, pages) {
    const pager = find("pager");
    show(pager, pages > 1);
    const [back, words, on] = pager.children;
    const first = this.page * PAGE_SIZE;
    setText(words, `${formatCount(first + 1)} to ${formatCount(Math.min(total, first + PAGE_SIZE))} of ${formatCount(total)}`);
    back.disabled = this.page === 0;
    on.disabled = this.page >= pages - 1;
  }
}

// As the report ranks them: losses at different reports cannot be compared, so reports come before loss.
function compareRanks(one, two) {
  const rank = (trial) => [STATES.indexOf(trial.state), trial.state === "complete" ? 0 : -trial.reports.length,
    trial.loss ?? Infinity, Number(trial.id)];
  const [a, b] = [rank(one), rank(two)];
  const at = a.findIndex((value, index) => value !== b[index]);
  return at < 0 ? 0 : a[at] < b[at] ? -1 : 1;
}
