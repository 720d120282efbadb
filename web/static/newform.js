// The form for a new migration. It can be checked before it is started: that changes
// nothing, and says how much space it takes or why it is refused.

import {check, migrate} from "./actions.js";
import {newKey} from "./api.js";
import {lastPart, printable, size} from "./format.js";
import {Dialog} from "./dialog.js";
import {html, useRef, useState} from "./html.js";
import {Message, Name, Problem} from "./parts.js";
import {announce, known} from "./store.js";

const blank = {
  source: "", destination: "", discard_src: false, verify: false, remove_src: false, overwrite: false,
  thin_pool: "", live: "", export: "", region_size: "", threshold: "", batch: "", commit_period: "", commit_bytes: "", bwlimit: "", priority: "",
};

const optional = ["thin_pool", "live", "export", "region_size", "threshold", "batch", "commit_period", "commit_bytes", "bwlimit"];
const counts = ["threshold", "batch"]; // of regions; all others are texts with units, which the service reads

/**
 * What the service takes for what was typed. Options that are left out are the service's own.
 * @param {typeof blank} form
 */
function requestOf(form) {
  const options = /** @type {Record<string, any>} */ ({
    discard_src: form.discard_src, verify: form.verify, remove_src: form.remove_src, overwrite: form.overwrite,
  });
  for (const name of optional) {
    const value = form[name].trim();
    if (value) options[name] = counts.includes(name) ? Number(value) : value;
  }
  const request = /** @type {Record<string, any>} */ ({source: form.source, destination: form.destination, options});
  if (form.priority) request.priority = Number(form.priority);
  return request;
}

export function NewForm() {
  const [form, setForm] = useState(blank);
  const [plan, setPlan] = useState(/** @type {any} */ (null));
  const [problem, setProblem] = useState(null);
  const [busy, setBusy] = useState("");
  const [question, setQuestion] = useState(null);
  const key = useRef(newKey()); // of this form as it is filled in
  const ready = form.source !== "" && form.destination !== "" && known.link === "live" && busy === "";

  const change = (name, value) => {
    // Of the newest form: more may be typed before this one is drawn.
    setForm((now) => ({...now, [name]: value, ...(name === "discard_src" && !value ? {remove_src: false} : {})}));
    setPlan(null);
    setProblem(null);
    key.current = newKey();
  };
  const attempt = async (what, deed) => {
    setProblem(null);
    setPlan(null);
    setBusy(what);
    try {
      await deed(requestOf(form));
    } catch (error) {
      setProblem(error);
    }
    setBusy("");
  };
  const look = () => attempt("check", async (request) => {
    const found = await check(request);
    setPlan(found);
    announce(`It can be done. ${found.space.verdict}`);
  });
  const start = async () => {
    const status = await migrate(requestOf(form), key.current);
    location.hash = `#/m/${encodeURIComponent(status.id)}`;
  };
  const submit = (e) => {
    e.preventDefault();
    if (!ready) return;
    if (form.overwrite || form.remove_src) setQuestion(questionFor(form, start));
    else attempt("start", start);
  };
  return html`<form class="new" onSubmit=${submit} aria-labelledby="new">
    <p class="back"><a href="#/">All migrations</a></p>
    <h1 id="new" tabindex="-1">New migration</h1>
    <${Ends} form=${form} change=${change}/>
    <${Choices} form=${form} change=${change}/>
    <${Details} form=${form} change=${change}/>
    <div class="buttons">
      <button type="submit" class="primary" disabled=${!ready} aria-busy=${busy === "start"}>Start</button>
      <button type="button" class="plain" disabled=${!ready} aria-busy=${busy === "check"} onClick=${look}>Check only</button>
      <span class="quiet" role="status">${busy === "check" ? "Checking; nothing is changed…" : busy === "start" ? "Checking, then starting…" : ""}</span>
    </div>
    ${problem && html`<${Problem} error=${problem}/>`}
    ${plan && html`<${Proof} plan=${plan}/>`}
    <${Dialog} question=${question} done=${() => setQuestion(null)}/>
  </form>`;
}

/** @param {typeof blank} form @param {() => Promise<void>} start @returns {import("./dialog.js").Question} */
function questionFor(form, start) {
  const lost = [];
  if (form.overwrite) lost.push(html`<p>Whatever <code>${printable(form.destination)}</code> holds now is overwritten.</p>`);
  if (form.remove_src) lost.push(html`<p>The file <code>${printable(form.source)}</code> is removed when its bytes are on the destination.</p>`);
  return {
    title: form.overwrite ? "Overwrite the destination?" : "Remove the source at the end?",
    text: lost, yes: "Start", dangerous: true,
    typed: printable(lastPart(form.overwrite ? form.destination : form.source)), deed: start,
  };
}

const text = (form, change, name, label, more = {}) => html`<label class="field"><span>${label}</span>
  <input name=${name} value=${form[name]} onInput=${(e) => change(name, e.target.value)} autocomplete="off" autocapitalize="off" spellcheck=${false} ...${more}/>
  ${more.note && html`<span class="quiet small">${more.note}</span>`}</label>`;

function Ends({form, change}) {
  return html`<div class="fields two">
    ${text(form, change, "source", "Source", {required: true, placeholder: "/images/vm.raw", note: "A file, a block or loop device, or a volume POOL/VOLUME"})}
    ${text(form, change, "destination", "Destination", {required: true, placeholder: "fast/vm", note: "A volume POOL/VOLUME or GROUP/VOLUME, a block device, or a path of a file"})}
  </div>`;
}

const choices = [
  ["discard_src", "Free the source on the way", "Its regions are given back once their copies are durable."],
  ["verify", "Read back", "Every region is read from the destination's medium and compared before its source is freed."],
  ["remove_src", "Remove the source file at the end", "Needs the source to be freed on the way."],
  ["overwrite", "Overwrite the destination", "Allows a destination that already holds data."],
];

function Choices({form, change}) {
  return html`<fieldset class="choices"><legend>What is done</legend>
    ${choices.map(([name, label, note]) => html`<label class="choice" key=${name}>
      <input type="checkbox" name=${name} checked=${form[name]} disabled=${name === "remove_src" && !form.discard_src}
        onChange=${(e) => change(name, e.target.checked)}/>
      <span>${label}<span class="quiet small">${note}</span></span></label>`)}
  </fieldset>`;
}

function Details({form, change}) {
  return html`<details><summary>Sizes, limits, use while it runs</summary><div class="fields three">
    ${text(form, change, "bwlimit", "Rate limit, per second", {placeholder: "unlimited"})}
    ${text(form, change, "region_size", "Region size", {placeholder: "1 MiB"})}
    ${text(form, change, "commit_bytes", "Most bytes in a transaction", {placeholder: "64 MiB"})}
    ${text(form, change, "commit_period", "Longest time of a transaction", {placeholder: "1s"})}
    ${text(form, change, "threshold", "Regions in flight", {placeholder: "32", type: "number", min: 1, max: 1048576})}
    ${text(form, change, "batch", "Regions in a copy", {placeholder: "4", type: "number", min: 1, max: 1048576})}
    ${text(form, change, "thin_pool", "Thin pool of LVM", {placeholder: "the only one"})}
    ${text(form, change, "live", "Use at once as /dev/mapper/", {placeholder: "no device"})}
    ${text(form, change, "export", "Serve over NBD at a socket", {placeholder: "no socket"})}
    ${text(form, change, "priority", "Priority", {placeholder: "0", type: "number", min: -1000, max: 1000})}
  </div></details>`;
}

/** What preflight found out. */
function Proof({plan}) {
  const {space} = plan;
  const list = [
    ["To be copied", size(space.data_bytes)],
    ["Extra space needed", size(space.needed_extra_bytes)],
    ["Available", space.bounded ? size(space.available_bytes) : "a device, which has its space"],
    ["Never touched", size(space.reserve_bytes)],
    ["Device", size(plan.bytes_total)],
    ["Region", size(plan.region_bytes)],
  ];
  return html`<section class="notice good proof" role="status" aria-label="Result of the check">
    <p><strong>It can be done${plan.resume ? `: migration ${plan.id} would go on` : ""}.</strong> <${Message} text=${space.verdict}/></p>
    <dl class="settings">${list.map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd class="number">${value}</dd></div>`)}</dl>
    ${(space.stores ?? []).length > 0 && html`<${Stores} list=${space.stores}/>`}
    ${(plan.warnings ?? []).map((warning) => html`<p class="hint" key=${warning}><${Message} text=${warning}/></p>`)}
  </section>`;
}

function Stores({list}) {
  return html`<table><thead><tr><th scope="col">Space is taken from</th><th scope="col" class="number">Needed</th><th scope="col" class="number">Available</th></tr></thead>
    <tbody>${list.map((s, i) => html`<tr key=${i}><th scope="row"><${Name} text=${s.name}/></th><td class="number">${size(s.needed_bytes)}</td>
      <td class="number">${size(s.available_bytes)}</td></tr>`)}</tbody></table>`;
}
