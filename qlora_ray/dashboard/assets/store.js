// What is known of the sweep: everything from the first message, and what is new from each one after it.

// The order of a leaderboard, with the marks that the report's figures have.
export const STATES = ["complete", "pruned", "failed", "interrupted", "running"];
export const MARKS = { complete: "●", pruned: "✕", failed: "▼", interrupted: "□", running: "○" };

export class Store {
  constructor() {
    this.clear();
  }

  clear() {
    this.head = null;
    this.trials = new Map();
    this.spans = new Map();
    this.slots = {};
    this.live = null;
    this.axes = [];
    this.importance = null;
    this.answers = [];
    this.others = [];
    this.clock = { sweepS: 0, serverS: Date.now() / 1000, at: performance.now() };
  }

  // Returns the names of the parts that are new.
  apply(message) {
    if (message.is_whole) this.clear();
    this.clock = { sweepS: message.clock_s, serverS: message.time, at: performance.now() };
    for (const trial of message.trials ?? []) this.trials.set(trial.id, trial);
    for (const span of message.spans ?? []) this.spans.set(span.key, span);
    for (const part of ["head", "slots", "live", "axes", "importance", "answers", "others"])
      if (part in message) this[part] = message[part];
    return message.is_whole ? null : new Set(Object.keys(message));
  }

  get isRunning() {
    return this.head !== null && !["ended", "killed"].includes(this.head.phase);
  }

  // Seconds on the sweep's own clock; it goes on between two messages.
  now() {
    return this.clock.sweepS + (this.isRunning ? (performance.now() - this.clock.at) / 1000 : 0);
  }

  // Seconds since 1970 by the server's clock, which the live figures are told by; a browser's may be another.
  serverTime() {
    return this.clock.serverS + (performance.now() - this.clock.at) / 1000;
  }

  // What a running trial does right now; null for others.
  liveOf(trial) {
    return trial.state === "running" ? (this.live?.trials?.[trial.id] ?? null) : null;
  }

  // The winner, or the best one so far.
  get bestId() {
    return this.head?.winner ?? this.head?.best ?? null;
  }

  get parameterNames() {
    if (this.axes.length) return this.axes.map((axis) => axis.path);
    const names = new Set();
    for (const trial of this.trials.values()) for (const name of Object.keys(trial.params)) names.add(name);
    return [...names];
  }
}

export const shortName = (path) => path.slice(path.lastIndexOf(".") + 1);
