// Buttons that ask something of a running sweep; the server has them only with --control.

import { find, make, setText, show } from "./dom.js";

const PHASES = ["starting", "search"];
const FINISH = "Begin no more trials? The winner is chosen when those that run have ended.";

export class Control {
  constructor(store, ask) {
    this.store = store;
    this.ask = ask;
    this.note = "";
    this.noteOf = null;
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

  async send(action, trial = null) {
    const answer = await this.ask("api/control", {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ action, trial }) });
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
    show(find("control-note"), words !== "");
  }
}
