// The pools of thin volumes: how full they are, and what is promised of them.

import {count, size} from "./format.js";
import {html} from "./html.js";
import {Name, Problem} from "./parts.js";
import {known} from "./store.js";

export function Pools() {
  const {pools, poolsProblem} = known;
  return html`<section aria-labelledby="pools">
    <div class="heading"><h2 id="pools">Pools</h2>${pools && html`<span class="quiet">${count(pools.length)}</span>`}</div>
    ${poolsProblem && html`<${Problem} error=${poolsProblem} title="The pools cannot be read."/>`}
    ${pools?.length === 0 && html`<p class="quiet">None is known here. <code>thinctl pool create</code> makes one.</p>`}
    ${pools?.length > 0 && html`<table class="pools" role="table">
      <thead><tr role="row"><th scope="col" role="columnheader">Pool</th><th scope="col" role="columnheader">Kind</th><th scope="col" role="columnheader" class="wide">Data</th><th scope="col" role="columnheader" class="number">Used</th>
        <th scope="col" role="columnheader" class="number">Reserved</th><th scope="col" role="columnheader" class="number">Free</th><th scope="col" role="columnheader" class="number">Metadata</th>
        <th scope="col" role="columnheader" class="number">Volumes</th></tr></thead>
      <tbody>${pools.map((pool) => html`<${Pool} key=${pool.name} pool=${pool}/>`)}</tbody></table>`}
  </section>`;
}

function Pool({pool}) {
  const {size_bytes: total, used_bytes: used, reserved_bytes: reserved} = pool;
  const metadata = pool.metadata_blocks > 0 ? `${Math.ceil((pool.metadata_used_blocks / pool.metadata_blocks) * 100)} %` : "-";
  const trouble = pool.problem || (pool.mode && pool.mode !== "rw" ? `mode ${pool.mode}` : "");
  return html`<tr role="row">
    <th scope="row" role="rowheader"><${Name} text=${pool.name}/>${trouble && html`<div class="reason small"><${Name} text=${trouble}/></div>`}</th>
    <td role="cell">${pool.kind}</td>
    <td role="cell" class="wide"><${Fill} used=${used} reserved=${reserved} total=${total}/></td>
    <td role="cell" class="number" data-label="Used">${size(used)}</td>
    <td role="cell" class="number" data-label="Reserved">${size(reserved)}</td>
    <td role="cell" class="number" data-label="Free">${size(Math.max(0, total - used - reserved))} <span class="quiet">of ${size(total)}</span></td>
    <td role="cell" class="number" data-label="Metadata">${metadata}</td>
    <td role="cell" class="number" data-label="Volumes">${count(pool.volumes)}</td>
  </tr>`;
}

/** A bar: used is solid, reserved is hatched, the rest is free. */
function Fill({used, reserved, total}) {
  const share = (n) => (total > 0 ? Math.min(100, (n / total) * 100) : 0);
  const taken = share(used);
  const promised = Math.min(100 - taken, share(reserved));
  return html`<svg class="fill" role="img" viewBox="0 0 100 10" preserveAspectRatio="none"
    aria-label=${`${Math.round(taken)} % used, ${Math.round(promised)} % reserved`}>
    <rect class="fill-used" x="0" y="0" width=${taken} height="10"/>
    <rect class="fill-reserved" x=${taken} y="0" width=${promised} height="10"/>
  </svg>`;
}
