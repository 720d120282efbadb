// The states of a migration: what they are called, how they are marked, and what can be
// done in them. A mark is the path of a line in a square of ten; some are filled.

/** @typedef {"pause"|"resume"|"cancel"|"reverse"|"verify"} Verb */

const states = /** @type {Record<string, {text: string, mark: string, filled?: boolean, tone: string, verbs: Verb[]}>} */ ({
  queued: {text: "queued", mark: "M5 1a4 4 0 1 0 0 8a4 4 0 0 0 0-8M5 2.6V5l1.8 1.2", tone: "quiet", verbs: ["pause", "cancel"]},
  running: {text: "running", mark: "M2.5 1v8l6-4z", filled: true, tone: "accent", verbs: ["pause", "cancel"]},
  paused: {text: "paused", mark: "M2 1h2v8H2zM6 1h2v8H6z", filled: true, tone: "quiet", verbs: ["resume", "cancel"]},
  stopped: {text: "stopped", mark: "M1.5 1.5h7v7h-7z", filled: true, tone: "warn", verbs: ["resume", "cancel"]},
  failed: {text: "failed", mark: "M1.5 1.5l7 7M8.5 1.5l-7 7", tone: "bad", verbs: ["resume", "cancel"]},
  done: {text: "done", mark: "M1 5.5l2.8 3L9 1.8", tone: "quiet", verbs: ["verify", "reverse"]},
  cancelled: {text: "cancelled", mark: "M1 5h8", tone: "quiet", verbs: []},
  reversed: {text: "reversed", mark: "M4 1L1 4l3 3M1 4h5a2.5 2.5 0 0 1 0 5H4", tone: "quiet", verbs: []},
  external: {text: "run by migrate", mark: "M2.5 1v8l6-4z", tone: "accent", verbs: ["pause"]},
});

const unknown = {filled: false, text: "unknown", mark: "M5 1a4 4 0 1 0 0 8a4 4 0 0 0 0-8", tone: "quiet", verbs: []};

/** @param {any} summary */
export function stateOf(summary) {
  if (summary.state) return summary.state;
  return summary.problem ? "failed" : summary.phase ?? "unknown";
}

const look = (/** @type {string} */ state) => states[state] ?? {...unknown, text: state};

export const stateText = (/** @type {string} */ state) => look(state).text;
export const stateMark = (/** @type {string} */ state) => ({path: look(state).mark, filled: look(state).filled === true});
export const stateTone = (/** @type {string} */ state) => look(state).tone;

/** What can be done with a migration. @param {any} summary @returns {Verb[]} */
export const verbsOf = (summary) => (summary.problem ? [] : look(stateOf(summary)).verbs);

/** The states in which something is left to do, what moves first. */
export const order = ["running", "external", "queued", "stopped", "failed", "paused"];

/** Where it stands in a list: what moves first, what is over last. @param {any} summary */
export function orderOf(summary) {
  const i = order.indexOf(stateOf(summary));
  return i < 0 ? order.length : i;
}

/** Whether nothing is left to do for it. @param {any} summary */
export const isOver = (summary) => ["done", "cancelled", "reversed"].includes(stateOf(summary));
