// Small components that several others are made of.

import {clock, duration, pieces, printable, rate} from "./format.js";
import {html} from "./html.js";
import {stateMark, stateOf, stateText, stateTone} from "./states.js";

/** A name that came from outside, with what does not print made visible. */
export function Name({text}) {
  return html`<span class="name" title=${printable(text ?? "")}>${pieces(text ?? "").map((piece) =>
    (piece.escaped ? html`<span class="escape">${piece.text}</span>` : piece.text))}</span>`;
}

/** A message that came from outside: a name that may be long, and has no tip. */
export function Message({text}) {
  return pieces(text ?? "").map((piece) => (piece.escaped ? html`<span class="escape">${piece.text}</span>` : piece.text));
}

/** From where to where. */
export function Ends({summary}) {
  return html`<span class="ends"><${Name} text=${summary.source}/><span class="arrow" aria-label="to">${summary.direction === "backward" ? "←" : "→"}</span><${Name} text=${summary.destination}/></span>`;
}

function Mark({state}) {
  const {path, filled} = stateMark(state);
  return html`<svg class="mark" width="10" height="10" viewBox="0 0 10 10" aria-hidden="true">
    <path d=${path} stroke="currentColor" stroke-width="1.5" fill=${filled ? "currentColor" : "none"} stroke-linejoin="round" stroke-linecap="round"/></svg>`;
}

export function State({record}) {
  const state = stateOf(record.summary);
  const {position, retry_at: retryAt} = record.summary;
  const phase = state === "running" && record.event?.phase;
  return html`<span class=${`state ${stateTone(state)}`} data-state=${state}>
    <${Mark} state=${state}/>${stateText(state)}${phase && phase !== "hydrating" && html`<span class="quiet">, ${phase}</span>`}
    ${state === "queued" && position > 0 && html`<span class="quiet">, no. ${position}</span>`}
    ${state === "stopped" && retryAt && html`<span class="quiet">, tried again at ${clock(retryAt)}</span>`}
  </span>`;
}

/** Something that went wrong, and what to do about it. */
export function Problem({error, title = "", tone = "bad"}) {
  return html`<div class=${`notice ${tone}`} role="alert">
    ${title && html`<strong>${title} </strong>`}<${Message} text=${error.message}/>
    ${error.hint && html`<p class="hint"><${Message} text=${error.hint}/></p>`}
  </div>`;
}

/** The rate of now, or nothing where nothing moves. */
export const rateNow = (record) => (stateOf(record.summary) === "running" || stateOf(record.summary) === "external"
  ? rate(record.event?.rate_bytes_per_second) : "-");

/** How long it still takes. */
export const timeLeft = (record) => (rateNow(record) === "-" ? "-" : duration(record.event?.eta_seconds));

/** What has to be copied, and what is, as far as known. */
export function progress(record) {
  const {summary, event} = record;
  const data = event?.bytes_data || summary.bytes_data || summary.bytes_total || 0;
  const copied = Math.max(event?.bytes_copied ?? 0, summary.bytes_copied ?? 0);
  const regions = summary.regions ? summary.regions_hydrated / summary.regions : 0;
  const share = event?.bytes_data ? copied / event.bytes_data : regions;
  return {data, copied, share: Math.min(1, share || 0)};
}
