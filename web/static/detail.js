// One migration: its map, its figures over time, what happened, and what can be done.

import {detail} from "./actions.js";
import {Chart} from "./chart.js";
import {Controls, Limits} from "./controls.js";
import {count, duration, lastPart, moment, percent, rate, size} from "./format.js";
import {html, useMemo, useState} from "./html.js";
import {usePaced} from "./measure.js";
import {Message, Name, Problem, progress, rateNow, State, timeLeft} from "./parts.js";
import {RegionMap} from "./regionmap.js";
import {stateOf, stateText, stateTone} from "./states.js";
import {known} from "./store.js";

const detailPeriod = 2000; // milliseconds between fetches of what no event carries

export function Detail({id}) {
  const record = known.migrations.get(id);
  const [more, setMore] = useState(/** @type {any} */ (null));
  usePaced(async () => {
    try {
      setMore(await detail(id, 0));
    } catch {
      // The list tells what is wrong; what was read before stays.
    }
  }, detailPeriod, [id, record?.mapVersion, record && stateOf(record.summary), known.link], !record && !known.partial);

  if (!record && !known.loaded) return html`<p class="quiet loading" aria-busy="true">Reading the migration…</p>`;
  if (!record) {
    return html`<section><h1 tabindex="-1">There is no migration ${id}</h1><p><a href="#/">All migrations</a></p></section>`;
  }
  const {summary} = record;
  return html`<article aria-labelledby="migration">
    <p class="back"><a href="#/">All migrations</a></p>
    <div class="heading"><h1 id="migration" tabindex="-1"><${Name} text=${lastPart(summary.source)}/></h1><${State} record=${record}/>
      <span class="quiet id">${summary.id}</span></div>
    <p class="paths"><span class="quiet">${summary.direction === "backward" ? "to" : "from"}</span> <${Name} text=${summary.source}/>
      <span class="quiet"> ${summary.direction === "backward" ? "back from" : "to"}</span> <${Name} text=${summary.destination}/></p>
    <${Why} record=${record}/>
    <${Controls} record=${record} key=${id}/>
    ${!summary.problem && html`<${Figures} record=${record}/>
      <${RegionMap} record=${record}/>
      <${Charts} record=${record}/>
      <div class="columns">
        <${Events} record=${record}/>
        <${Transactions} list=${more?.transactions}/>
      </div>
      ${more?.bad?.length > 0 && html`<${Bad} list=${more.bad}/>`}
      ${more && html`<${Settings} record=${record} more=${more}/>`}`}
  </article>`;
}

/** Why it stands still, and what to do. */
function Why({record}) {
  const {reason, hint, problem} = record.summary;
  if (!reason && !problem) return null;
  const state = stateOf(record.summary);
  const sentence = `${stateText(state)[0].toUpperCase()}${stateText(state).slice(1)}.`;
  return html`<${Problem} error=${{message: reason || problem, hint}} title=${sentence} tone=${stateTone(state)}/>`;
}

function Figures({record}) {
  const {summary, event} = record;
  const {data, copied, share} = progress(record);
  const most = (name) => Math.max(event?.[name] ?? 0, summary[name] ?? 0);
  const list = [
    ["Progress", `${percent(share, 1)} %`, "of the regions"],
    ["Copied", size(copied), `of ${size(data)}`],
    ["Committed", event ? size(event.bytes_committed) : size(summary.bytes_copied), summary.regions_dirty > 0
      ? `${count(summary.regions_dirty)} regions to follow` : `transaction ${count(most("transaction"))}`],
    ["Freed on the source", size(event?.bytes_discarded ?? summary.regions_discarded * summary.region_bytes), `${count(summary.regions_discarded)} of ${count(summary.regions)} regions`],
    ["Peak extra space", size(most("peak_extra_bytes")), "beyond the start"],
    ["Rate", rateNow(record), event?.bytes_verified > 0 ? `${size(event.bytes_verified)} verified` : "over five seconds"],
    ["Time left", timeLeft(record), `begun ${moment(summary.created)}`],
  ];
  if (summary.verified) list.push(verdictOn(summary.verified));
  return html`<dl class="figures">${list.map(([name, value, note]) => html`<div key=${name}>
    <dt>${name}</dt><dd class="figure">${value}</dd><dd class="quiet small">${note}</dd></div>`)}</dl>`;
}

/** What the last verification has found. */
function verdictOn(report) {
  const wrong = report.mismatch_regions;
  return ["Verified", wrong > 0 ? `${count(wrong)} differ` : "all the same", `${count(report.regions_checked)} regions, ${size(report.bytes_read)} read`];
}

const rateLines = [{text: "copied", colour: "--accent", fill: "--accent-wash"}];
const spaceLines = [
  {text: "source", colour: "--quiet", dash: [5, 3]},
  {text: "destination", colour: "--accent"},
  {text: "together", colour: "--ink", dash: [1, 2]},
];

function Charts({record}) {
  const {samples} = record.history;
  const newest = samples.at(-1)?.time;
  const {data} = progress(record);
  const [rates, spaces] = useMemo(() => {
    const times = samples.map((s) => s.time);
    const given = samples.map((s) => Math.max(0, data - s.discarded));
    const taken = samples.map((s) => s.copied);
    const ends = record.summary.direction === "backward" ? [taken, given] : [given, taken];
    return [[times, samples.map((s) => s.rate)], [times, ...ends, given.map((n, i) => n + taken[i])]];
  }, [samples.length, newest, data]);
  return html`<div class="columns">
    <${Chart} title="Rate" lines=${rateLines} data=${rates} unit="/s"/>
    <${Chart} title="Space taken" lines=${spaceLines} data=${spaces}/>
  </div>`;
}

const eventTexts = {
  started: (e) => (e.resumed && e.transaction > 0 ? "Resumed" : "Started"),
  exported: (e) => `Can be used as ${e.device || e.export}`,
  paused: (e) => `Paused: ${e.message ?? ""}`,
  warning: (e) => `Warning: ${e.message ?? ""}`,
  hydrated: () => "All regions are copied",
  done: (e) => `Done${e.elapsed_seconds == null ? "" : ` after ${duration(e.elapsed_seconds)}`}${e.source_freed_bytes ? `; ${size(e.source_freed_bytes)} freed on the source` : ""}`,
  stopped: (e) => `Stopped: ${e.reason ?? ""}`,
  failed: (e) => `Failed: ${e.reason ?? ""}`,
};

function Events({record}) {
  const {log} = record;
  return html`<section aria-labelledby="events"><h2 id="events">Events</h2>
    ${log.length === 0 ? html`<p class="quiet">None since this page was opened.</p>` : html`<div class="scroll" tabindex="0" role="group" aria-labelledby="events">
    <table class="events"><thead class="unseen"><tr><th scope="col">Time</th><th scope="col">What happened</th></tr></thead>
      <tbody>${log.map((e) => html`<tr key=${e.time + e.event}><td class="time">${moment(e.time)}</td>
        <td class=${`event ${e.event}`}><${Message} text=${(eventTexts[e.event] ?? (() => e.event))(e)}/>
          ${e.hint && html`<div class="quiet small"><${Message} text=${e.hint}/></div>`}</td></tr>`)}</tbody></table></div>`}
  </section>`;
}

function Transactions({list}) {
  return html`<section aria-labelledby="transactions"><h2 id="transactions">Last transactions</h2>
    ${!list ? html`<p class="quiet" aria-busy="true">Reading…</p>` : list.length === 0 ? html`<p class="quiet">None has committed yet.</p>`
    : html`<div class="scroll" tabindex="0" role="group" aria-labelledby="transactions"><table class="transactions">
      <thead><tr><th scope="col" class="number">No.</th><th scope="col" class="number">Committed</th><th scope="col" class="number">Source freed</th>
        <th scope="col" class="number">Regions</th><th scope="col" class="number">Copied</th></tr></thead>
      <tbody>${list.map((t) => html`<tr key=${t.number}><td class="number">${t.number}</td><td class="number">${moment(t.committed)}</td>
        <td class="number">${t.discarded_at ? moment(t.discarded_at) : "-"}</td><td class="number">${count(t.regions)}</td>
        <td class="number">${size(t.copied_bytes)}</td></tr>`)}</tbody></table></div>`}
  </section>`;
}

function Bad({list}) {
  return html`<section aria-labelledby="bad"><h2 id="bad">Not readable on the source</h2><div class="scroll" tabindex="0" role="group" aria-labelledby="bad"><table class="bad">
    <thead><tr><th scope="col" class="number">Offset</th><th scope="col" class="number">Bytes</th><th scope="col">Error</th></tr></thead>
    <tbody>${list.map((b) => html`<tr key=${b.offset}><td class="number">${count(b.offset)}</td><td class="number">${count(b.bytes)}</td>
      <td class="event"><${Message} text=${b.error}/></td></tr>`)}</tbody></table></div></section>`;
}

const yesNo = (value) => (value ? "yes" : "no");

function Settings({record, more}) {
  const o = more.options ?? {};
  const list = [
    ["Free the source", yesNo(o.discard_src)], ["Read back", yesNo(o.verify)], ["Remove the source", yesNo(o.remove_src)],
    ["Region", size(o.region_bytes)], ["Regions in a copy", count(o.batch_regions)],
    ["Commit at least every", duration((o.commit_period_ns ?? 0) / 1e9)], ["and after", size(o.commit_bytes)],
    ["Used as", o.live ? `/dev/mapper/${o.live}` : o.export || "-"], ["Rate limit", o.bytes_per_second ? rate(o.bytes_per_second) : "none"], ["Journal", more.journal],
  ];
  return html`<section aria-labelledby="settings"><h2 id="settings">Settings</h2>
    <${Limits} record=${record} options=${o} key=${`${o.bytes_per_second} ${o.threshold_regions}`}/>
    <dl class="settings">${list.map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd><${Name} text=${value ?? "-"}/></dd></div>`)}</dl>
  </section>`;
}
