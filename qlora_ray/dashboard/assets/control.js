// Buttons that ask something of a running sweep; the server has them only with --control.

import { cloneForm } from "./clone.js";
import { find, make, setText, show } from "./dom.js";

const PHASES = ["starting", "search"];
const FINISH = "Begin no more trials? The winner is chosen when those that run have ended.";

export class Control {
  constructor(store, ask) {
    this.store = store;
    this.ask = ask;
    this.note = "";
    this.noteOf = null;
    this.cloned = null;
    this.clonedAsked = false;
    this.pause = make("button", { type: "button" });
    this.finish = make("button", { type: "button", text: "Finish after the running trials" });
    this.pause.addEventListener("click", () => this.send(this.store.head.is_paused ? "continue" : "pause"));
    this.finish.addEventListener("click", () => { if (window.confirm(FINISH)) this.send("finish"); });
    find("control").append(this.pause, this.finish);
  }

  get isOn() {
    const { head } = this.store;
    return head !== null && head.has_control && PHASES.includes(head.phase);
  }

  // A button in a trial's own window; null where it cannot be stopped.
  stopButton(trial) {
    if (!this.isOn || this.store.trials.get(trial)?.state !== "running") return null;
    const button = make("button", { type: "button", text: "Stop this trial" });
    button.addEventListener("click", () => {
      if (!window.confirm(`Stop trial ${trial}? It ends as pruned, and its adapter is not kept.`)) return;
      button.disabled = true;
      this.send("stop_trial", trial);
    });
    return button;
  }

  // The form that clones a trial; null where it cannot be cloned. It is one and the same while its window is open, so
  // that a report does not take away what was typed.
  cloneForm(id) {
    const trial = this.store.trials.get(id);
    const space = this.store.head?.clone_space ?? {};
    if (!this.isOn || !["running", "interrupted"].includes(trial?.state) || !Object.keys(space).length) return null;
    if (this.cloned?.id !== id) {
      const { form, note } = cloneForm(trial, space, (params) => {
        this.clonedAsked = true;
        this.send("clone", id, params);
      });
      this.clonedAsked = false;
      const words = "A copy of this trial goes on from its last report with other values, as a trial of its own.";
      this.cloned = { id, note, element: make("details", { className: "clones" }, make("summary", { text: "Clone this trial" }),
        make("p", { className: "caption", text: words }), form) };
    }
    return this.cloned.element;
  }

  async send(action, trial = null, params = null) {
    const answer = await this.ask("api/control", {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ action, trial, params }) });
    this.noteOf = this.store.head?.last_request ?? null;
    this.note = answer.ok ? "Asked; the sweep takes it within a second or two while it searches." : await answer.text();
    this.render();
  }

  render() {
    const { head } = this.store;
    show(find("control"), this.isOn);
    if (head === null) return;
    setText(this.pause, head.is_paused ? "Continue" : "Pause: begin no trials");
    this.pause.disabled = head.is_finishing;
    this.finish.disabled = head.is_finishing;
    // The driver's answer takes the place of our own words.
    if (this.note && head.last_request !== this.noteOf) this.note = "";
    const words = this.note || (this.store.isRunning ? (head.last_request ?? "") : "");
    setText(find("control-note"), words);
    // The page's own words are behind the trial's window.
    if (this.cloned && this.clonedAsked) setText(this.cloned.note, words);
    show(find("control-note"), words !== "");
  }
}
