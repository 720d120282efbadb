// What can be done with a migration.

import {act, limit} from "./actions.js";
import {count, printable, size} from "./format.js";
import {html, useLayoutEffect, useRef, useState} from "./html.js";
import {Dialog} from "./dialog.js";
import {Ends, Problem} from "./parts.js";
import {isOver, stateOf, verbsOf} from "./states.js";
import {announce, known} from "./store.js";

/**
 * The question before a deed that does more than stop or go on.
 * @param {string} verb @param {any} summary
 * @returns {import("./dialog.js").Question|null}
 */
function questionFor(verb, summary) {
  const {id, source, destination} = summary;
  const ends = html`<p><${Ends} summary=${summary}/></p>`;
  const freed = summary.regions_discarded > 0;
  switch (verb) {
    case "cancel":
      return {
        title: `Cancel migration ${id}?`, yes: "Cancel it", dangerous: true, typed: id,
        text: html`${ends}<p>What was copied is given up. The source is whole: nothing was freed on it yet.
          A destination that this migration made is removed.</p>`,
        deed: () => act(id, "cancel", {}),
      };
    case "cancel+reverse":
      return {
        title: `Cancel migration ${id} and bring its bytes back?`, yes: "Cancel and reverse", dangerous: true, typed: id,
        text: html`${ends}<p>${freed ? `${count(summary.regions_discarded)} of ${count(summary.regions)} regions were freed on the source, which is not whole any more. ` : ""}
          All regions are copied back to <code>${printable(source)}</code>, under the same rules, and a destination that this migration made is
          removed at the end.</p>`,
        deed: () => act(id, "cancel", {reverse: true}),
      };
    case "reverse":
      return {
        title: `Reverse migration ${id}?`, yes: "Reverse it", dangerous: true,
        text: html`${ends}<p>The bytes are brought back from <code>${printable(destination)}</code> to <code>${printable(source)}</code>, region by region.
          Nobody may write to either meanwhile.</p>`,
        deed: () => act(id, "reverse"),
      };
    default:
      return null;
  }
}

const labels = {
  pause: "Pause", resume: "Resume", cancel: "Cancel…", "cancel+reverse": "Cancel and reverse…",
  reverse: "Reverse…", verify: "Verify",
};

/** The verbs of a migration: one that has freed regions is cancelled by reversing it only. */
function verbs(summary) {
  const list = [];
  for (const verb of verbsOf(summary)) {
    if (verb !== "cancel") list.push(verb);
    else if (summary.direction === "backward") continue;
    else if (summary.regions_discarded > 0) list.push("cancel+reverse");
    else list.push(verb);
  }
  return list;
}

/** The buttons, and what came of the last one. */
export function Controls({record}) {
  const {summary} = record;
  const [question, setQuestion] = useState(null);
  const [busy, setBusy] = useState("");
  const [problem, setProblem] = useState(null);
  const gone = known.link !== "live";
  const offered = verbs(summary);
  const group = useRef(null);
  const acted = useRef(false);
  // A button that was pressed is gone afterwards, or was disabled for a while, and the
  // focus with it: the next one takes it.
  useLayoutEffect(() => {
    if (!acted.current || busy !== "" || question || document.activeElement !== document.body) return;
    acted.current = false;
    group.current.querySelector("button:not(:disabled)")?.focus({preventScroll: true});
  }, [busy, question, offered.join()]);

  const run = async (verb) => {
    acted.current = true;
    setProblem(null);
    const q = questionFor(verb, summary);
    if (q) {
      setQuestion(q);
      return;
    }
    setBusy(verb);
    try {
      await act(summary.id, verb);
      if (verb === "verify") announce("The verification has begun.");
    } catch (error) {
      setProblem(error);
    }
    setBusy("");
  };
  return html`<div class="controls">
    <div class="buttons" ref=${group} role="group" aria-label=${`Migration ${summary.id}`}>
      ${offered.map((verb) => html`<button key=${verb} type="button" class=${verb === "resume" ? "primary" : verb.startsWith("cancel") ? "warn" : "plain"}
        disabled=${gone || busy !== ""} aria-busy=${busy === verb} onClick=${() => run(verb)}>${labels[verb]}</button>`)}
    </div>
    ${problem && html`<${Problem} error=${problem}/>`}
    <${Dialog} question=${question} done=${() => setQuestion(null)}/>
  </div>`;
}

/** The limits that can be changed while it runs. */
export function Limits({record, options}) {
  const {summary} = record;
  const given = {
    bwlimit: options.bytes_per_second ? size(options.bytes_per_second) : "",
    threshold: String(options.threshold_regions ?? ""),
    priority: String(summary.priority ?? 0),
  };
  const [changed, setChanged] = useState(/** @type {any} */ ({}));
  const [said, setSaid] = useState("");
  const [problem, setProblem] = useState(null);
  if (isOver(summary) || stateOf(summary) === "external" || summary.problem) return null;

  const values = {...given, ...changed};
  const submit = async (e) => {
    e.preventDefault();
    setSaid("");
    setProblem(null);
      try {
      await limit(summary.id, {
        bwlimit: values.bwlimit.trim() || 0, threshold: Number(values.threshold), priority: Number(values.priority),
      });
      setSaid("Changed.");
    } catch (error) {
      setProblem(error);
    }
  };
  const input = (name) => (e) => {
    const {value} = e.target;
    setChanged((now) => ({...now, [name]: value}));
  };
  return html`<form class="limits" onSubmit=${submit} aria-label="Limits">
    <label class="field"><span>Rate limit, per second</span>
      <input name="bwlimit" placeholder="unlimited" value=${values.bwlimit} onInput=${input("bwlimit")} size="10"/></label>
    <label class="field"><span>Regions in flight</span>
      <input name="threshold" type="number" min="1" max="1048576" required value=${values.threshold} onInput=${input("threshold")}/></label>
    <label class="field"><span>Priority</span>
      <input name="priority" type="number" min="-1000" max="1000" required value=${values.priority} onInput=${input("priority")}/></label>
    <button class="plain" disabled=${known.link !== "live"}>Set limits</button>
    <span class="quiet" role="status">${said}</span>
    ${problem && html`<${Problem} error=${problem}/>`}
  </form>`;
}
