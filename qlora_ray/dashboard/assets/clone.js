// The form in a trial's window that asks for a clone: a copy that goes on from the trial's last state with other values.

import { make } from "./dom.js";
import { formatValue } from "./format.js";
import { shortName } from "./store.js";

// One row per value that may be another one; only those that are another one are asked for.
export function cloneForm(trial, space, send) {
  const fields = Object.entries(space).map(([path, words]) => makeField(path, words, trial.params[path]));
  const note = make("p", { className: "caption", role: "status" });
  const form = make("form", { className: "clone" }, ...fields.map((field) => field.label),
    make("button", { type: "submit", text: "Clone with these values" }), note);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const params = {};
    for (const field of fields) if (field.isChanged()) params[field.path] = field.value();
    if (!Object.keys(params).length) {
      note.textContent = "Change a value first.";
      return;
    }
    note.textContent = "";
    send(params);
  });
  return { form, note };
}

function makeField(path, words, now) {
  const { choices } = words;
  const name = make("span", { text: shortName(path) });
  if (choices) {
    const select = make("select", {}, ...choices.map((choice, at) => make("option", { value: String(at), text: formatValue(choice) })));
    const first = choices.findIndex((choice) => JSON.stringify(choice) === JSON.stringify(now));
    select.selectedIndex = first;
    return { path, label: make("label", {}, name, select), value: () => choices[select.selectedIndex],
      isChanged: () => select.selectedIndex !== first };
  }
  const input = make("input", { type: "number", step: "any", min: String(words.low), max: String(words.high), required: "" });
  input.value = String(now);
  const range = make("small", { className: "muted", text: `${formatValue(words.low)} to ${formatValue(words.high)}` });
  return { path, label: make("label", {}, name, input, range), value: () => input.valueAsNumber,
    isChanged: () => input.valueAsNumber !== now };
}
