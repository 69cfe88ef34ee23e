// The top of the page: how the sweep stands, its figures at a glance, and how far scoring is.

import { find, fillBar, make, makeBar, setClass, setText, show } from "./dom.js";
import { formatCount, formatDuration, formatLoss, formatTime, plural } from "./format.js";
import { STATES } from "./store.js";

const PHASES = {
  starting: "starting: Ray, executors, base",
  search: "searching",
  scoring: "scoring the best trials and the base",
  report: "writing the report",
  ended: "ended",
  killed: "killed",
};
// Live figures come every 2 s; older ones are no longer live.
const STALE_S = 15;

export function renderHead(store) {
  const { head } = store;
  if (head === null) return;
  document.title = `${head.name}: ${head.headline}`;
  setText(find("name"), `Sweep ${head.name}`);
  setText(find("folder"), head.folder);
  const headline = find("headline");
  setText(headline, head.headline);
  setClass(headline, head.tone);
  renderLead(store);
  const resume = find("resume");
  show(resume, Boolean(head.resume_command));
  setText(resume, head.resume_command ?? "");
  renderFacts(find("facts"), factsOf(store));
  renderScoring(store);
}

function renderLead(store) {
  const { head, live } = store;
  const lines = [...head.lead];
  if (head.phase === "killed") lines.push("Its driver is gone; resume with:");
  else if (head.resume_command) lines.push("Go on with:");
  else if (!["ended", "starting"].includes(head.phase) && head.winner === null)
    lines.push("No verdict yet: the winner is held against its base when the search has ended.");
  const age = live ? store.serverTime() - live.time : 0;
  // A resumed sweep that starts has the hours of the run before, and no figures of its own yet.
  if (!["ended", "killed", "starting"].includes(head.phase) && age > STALE_S)
    lines.push(`The live figures are ${formatDuration(age)} old: the driver has written none since.`);
  const place = find("lead");
  while (place.children.length > lines.length) place.lastChild.remove();
  while (place.children.length < lines.length) place.append(make("p"));
  lines.forEach((line, at) => setText(place.children[at], line));
}

function factsOf({ head, live, isRunning }) {
  const isDone = ["complete", "pruned", "failed"];
  const done = isDone.reduce((sum, state) => sum + (head.counts[state] ?? 0), 0);
  const states = STATES.filter((state) => head.counts[state]).map((state) => `${formatCount(head.counts[state])} ${state}`);
  const facts = [["phase", PHASES[head.phase] ?? head.phase]];
  const of = head.num_planned ? ` of ${formatCount(head.num_planned)}` : "";
  facts.push([states.join(", ") || "trials", `${formatCount(done)}${of} trials done`]);
  if (head.best !== null) {
    const label = head.winner ? "winner's loss" : head.is_best_complete ? "best so far" : "lowest report so far";
    facts.push([label, `${formatLoss(head.best_loss)} (trial ${head.winner ?? head.best})`]);
  }
  if (isRunning) facts.push(etaOf(live));
  if (live) {
    const hours = live.gpu_hours < 10 ? live.gpu_hours.toFixed(2) : live.gpu_hours.toFixed(1);
    facts.push([live.device_kind === "cuda" ? "GPU-hours" : "device-hours (CPU)", hours]);
    if (isRunning) {
      const waiting = live.waiting ? `, ${plural(live.waiting, "trial")} waiting` : "";
      facts.push([`slots used${waiting}`, `${live.slots_used} of ${live.slots}`]);
    }
  }
  facts.push(["last event", formatTime(head.last_event_at)]);
  return facts;
}

// How long scoring takes can be said later than how long the search does.
function etaOf(live) {
  const isPartial = (live?.eta_s ?? null) === null && (live?.search_eta_s ?? null) !== null;
  return isPartial ? ["ETA of the search", formatDuration(live.search_eta_s)]
    : ["ETA, scoring and report included", formatDuration(live?.eta_s)];
}

function renderFacts(list, facts) {
  while (list.children.length > facts.length) list.lastChild.remove();
  while (list.children.length < facts.length) list.append(make("div", {}, make("dt"), make("dd")));
  facts.forEach(([label, value], at) => {
    const [name, figure] = list.children[at].children;
    setText(name, label);
    setText(figure, value);
  });
}

function renderScoring({ live, isRunning }) {
  const place = find("scoring");
  const scoring = isRunning ? (live?.scoring ?? null) : null;
  show(place, scoring !== null);
  if (scoring === null) return;
  if (!place.children.length) place.append(make("div"), makeBar());
  const eta = scoring.eta_s === null ? "" : `, ${formatDuration(scoring.eta_s)} left`;
  setText(place.firstChild, `Scoring ${scoring.what}: ${scoring.done} of ${plural(scoring.total, "row")}${eta}`);
  fillBar(place.lastChild, { value: scoring.done, total: scoring.total });
}
