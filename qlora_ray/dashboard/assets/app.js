// The page: listens to the server, keeps what it says, and draws what is new.

import { Control } from "./control.js";
import { Curves } from "./curves.js";
import { Detail } from "./detail.js";
import { renderAnswers, renderDevices, renderOthers } from "./devices.js";
import { find, setText, show } from "./dom.js";
import { renderHead } from "./head.js";
import { Parallel, renderImportance } from "./parameters.js";
import { Slots } from "./slots.js";
import { Store } from "./store.js";
import { TrialTable } from "./trials.js";

const CLOCK_MS = 1000;
const query = new URLSearchParams(window.location.search);
const token = query.get("token") ?? "";
const store = new Store();

function ask(path, options = {}) {
  const sweep = query.get("sweep");
  const where = sweep ? `${path}?${new URLSearchParams({ sweep })}` : path;
  // A server that is gone is an answer too: a button that was pressed must say something.
  return fetch(where, { ...options, headers: { ...options.headers, Authorization: `Bearer ${token}` } })
    .catch(() => new Response("This page's server does not answer.", { status: 503 }));
}

const control = new Control(store, ask);
const detail = new Detail(store, ask, control);
const open = (trial) => detail.open(trial);
const shows = (trial) => table.shows(trial);
const table = new TrialTable(store, { open, onFilter: () => figures.forEach((one) => one.figure.refresh()) });
const curves = new Curves(store, { shows, open });
const slots = new Slots(store, { shows, open });
const parallel = new Parallel(store, { shows, open });
const figures = [curves, slots, parallel];

// Each part of the page, with the parts of a message that it shows.
const PARTS = [
  [["head", "live"], () => renderHead(store)],
  [["head"], () => control.render()],
  [["head", "trials", "live", "axes"], () => table.render()],
  [["head", "trials"], () => curves.figure.refresh()],
  [["head", "trials", "spans", "slots"], () => slots.figure.refresh()],
  [["head", "trials", "axes"], () => parallel.figure.refresh()],
  [["importance"], () => renderImportance(store)],
  [["live", "trials"], () => renderDevices(store)],
  [["answers"], () => renderAnswers(store)],
  [["others"], () => renderOthers(store)],
  [["trials"], () => detail.refresh()],
];

let waiting = new Set();
let isAll = false;

function render() {
  const names = waiting;
  const all = isAll;
  [waiting, isAll] = [new Set(), false];
  for (const [parts, draw] of PARTS) if (all || parts.some((part) => names.has(part))) draw();
  // What was heard last and is on the page now, for whoever measures how far behind it is.
  if (store.head?.last_event_at) document.querySelector("main").dataset.lastEvent = store.head.last_event_at;
}

function take(message) {
  const names = store.apply(message);
  if (!waiting.size && !isAll) requestAnimationFrame(render);
  if (names === null) isAll = true;
  else for (const name of names) waiting.add(name);
}

function say(text) {
  setText(find("connection"), text);
  show(find("connection"), text !== "");
}

function listen() {
  const where = new URLSearchParams({ token });
  if (query.get("sweep")) where.set("sweep", query.get("sweep"));
  const source = new EventSource(`api/stream?${where}`);
  source.addEventListener("message", (event) => { say(""); take(JSON.parse(event.data)); });
  source.addEventListener("end", () => {
    source.close();
    const again = store.head ? ` Look again with: ${store.head.dashboard_command}` : "";
    say(`This page's server has ended; what it shows stays as it was.${again}`);
  });
  source.addEventListener("error", () => {
    say(source.readyState === EventSource.CLOSED
      ? "The server has refused this page: its address is of an earlier start. Open the address that was printed last."
      : "The connection to this page's server is lost. It is tried again every second.");
  });
}

// Times go on between two messages: open bars grow, and live figures get old.
setInterval(() => {
  if (!store.isRunning || document.hidden) return;
  renderHead(store);
  slots.figure.refresh();
}, CLOCK_MS);

listen();
