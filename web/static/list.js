// All migrations, in a table; on narrow screens each row becomes a block.

import {count, moment, percent, size} from "./format.js";
import {html, useState} from "./html.js";
import {Ends, Message, progress, Problem, rateNow, State, timeLeft} from "./parts.js";
import {Legend, Strip} from "./regionmap.js";
import {inOrder, known} from "./store.js";

const rowsAtFirst = 50;

export function List() {
  const [rows, setRows] = useState(rowsAtFirst);
  const all = inOrder();
  return html`<section aria-labelledby="migrations">
    <div class="heading"><h1 id="migrations" tabindex="-1">Migrations</h1>
      ${known.loaded && html`<span class="quiet">${count(known.total)}${known.partial && `, of which ${count(all.length)} are listed`}</span>`}
      <a class="button primary" href="#/new">New migration</a></div>
    ${known.problem && html`<${Problem} error=${known.problem} title="The list cannot be read."/>`}
    ${body(all, rows)}
    ${all.length > rows && html`<p><button class="plain" onClick=${() => setRows(rows * 2)}>Show more of ${count(all.length)}</button></p>`}
  </section>`;
}

function body(all, rows) {
  if (!known.loaded && !known.problem) return html`<p class="quiet loading" aria-busy="true">Reading the migrations…</p>`;
  if (all.length === 0 && !known.problem) {
    return html`<div class="empty"><p>No migrations yet.</p>
      <p class="quiet">Start one here, or with <code>migrate --detach SOURCE DESTINATION</code>.
      Those that <code>migrate</code> runs by itself with the same state directory show up as well.</p></div>`;
  }
  if (all.length === 0) return null;
  return html`<table class="migrations" role="table">
    <thead><tr role="row"><th scope="col" role="columnheader">Source and destination</th><th scope="col" role="columnheader">State</th><th scope="col" role="columnheader" class="wide">Regions</th>
      <th scope="col" role="columnheader" class="number">Copied</th><th scope="col" role="columnheader" class="number">Rate</th><th scope="col" role="columnheader" class="number">Time left</th></tr></thead>
    <tbody>${all.slice(0, rows).map((record) => html`<${Row} key=${record.summary.id} record=${record}/>`)}</tbody>
  </table><${Legend}/>`;
}

function Row({record}) {
  const {summary} = record;
  const {data, copied, share} = progress(record);
  return html`<tr role="row">
    <th scope="row" role="rowheader"><a href=${`#/m/${encodeURIComponent(summary.id)}`}><${Ends} summary=${summary}/></a>
      <div class="quiet small">${summary.id}, ${moment(summary.created)}</div></th>
    <td role="cell"><${State} record=${record}/>
      ${(summary.reason || summary.problem) && html`<div class="reason small"><${Message} text=${summary.reason || summary.problem}/></div>`}</td>
    <td role="cell" class="wide"><${Strip} record=${record}/></td>
    <td role="cell" class="number" data-label="Copied"><span class="figure">${percent(share, 1)} %</span>
      <div class="quiet small">${size(copied)} of ${size(data)}</div></td>
    <td role="cell" class="number" data-label="Rate">${rateNow(record)}</td>
    <td role="cell" class="number" data-label="Time left">${timeLeft(record)}</td>
  </tr>`;
}
