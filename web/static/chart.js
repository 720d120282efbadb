// Lines over time, by uPlot. A caption says in text what the lines show.

import uPlot from "./vendor/uplot/uPlot.mjs";
import {clock, size} from "./format.js";
import {html, useEffect, useRef, useState} from "./html.js";
import {useTheme, useWidth} from "./measure.js";

const height = 170; // pixels

/** @typedef {{text: string, colour: string, dash?: number[], fill?: string}} Line colours are names of properties of the style sheet */

const property = (/** @type {string} */ name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** Steps of an axis of bytes: powers of 1024, halved and quartered. */
function byteSplits(/** @type {any} */ _, /** @type {number} */ __, /** @type {number} */ low, /** @type {number} */ high) {
  const span = Math.max(1, high - low);
  let step = 2 ** Math.ceil(Math.log2(span / 5));
  step = Math.max(1, step);
  const splits = [];
  for (let v = Math.ceil(low / step) * step; v <= high; v += step) splits.push(v);
  return splits;
}

/**
 * @param {Line[]} lines @param {string} unit after the size @param {number} width
 * @param {(index: number|null) => void} onCursor
 */
function options(lines, unit, width, onCursor) {
  const axis = {
    stroke: property("--quiet"), font: `11px ${property("--font")}`, gap: 4,
    grid: {stroke: property("--line"), width: 1}, ticks: {show: false},
  };
  return {
    width, height,
    padding: [10, 24, 0, 0],
    legend: {show: false},
    cursor: {y: false, drag: {x: false, y: false}, points: {size: 6}},
    scales: {y: {range: (/** @type {any} */ _, /** @type {number} */ __, /** @type {number} */ high) => [0, Math.max(1024, high * 1.08)]}},
    axes: [
      {...axis, space: 70, size: 24, values: (/** @type {any} */ _, /** @type {number[]} */ times) => times.map((t) => clock(t * 1000))},
      {...axis, size: 66, splits: byteSplits, values: (/** @type {any} */ _, /** @type {number[]} */ list) => list.map((v) => (v === 0 ? "0" : size(v).replace(/\.0+ /, " ") + unit))},
    ],
    series: [{}, ...lines.map((line) => ({
      label: line.text, stroke: property(line.colour), width: 1.75, dash: line.dash,
      fill: line.fill && property(line.fill), points: {show: false},
    }))],
    hooks: {setCursor: [(/** @type {any} */ u) => onCursor(u.cursor.idx ?? null)]},
  };
}

/**
 * @param {{title: string, lines: Line[], data: number[][], unit?: string}} props
 *   data: times in seconds, then the values of each line
 */
export function Chart({title, lines, data, unit = ""}) {
  const [place, width] = useWidth();
  const target = useRef(null);
  const plot = useRef(/** @type {any} */ (null));
  const theme = useTheme();
  const [at, setAt] = useState(/** @type {number|null} */ (null));
  const enough = data[0].length > 1;

  useEffect(() => {
    if (!width || !enough) return undefined;
    plot.current = new uPlot(options(lines, unit, width, setAt), data, target.current);
    return () => { plot.current.destroy(); plot.current = null; };
  }, [width, theme, enough]);
  useEffect(() => plot.current?.setData(data), [data]);

  const i = at ?? data[0].length - 1;
  return html`<figure class="chart">
    <figcaption>
      <span class="chart-title">${title}</span>
      ${lines.map((line, n) => html`<span class="chart-value" key=${line.text}>
        <${Key} line=${line}/>${line.text} <b>${data[n + 1].length ? size(data[n + 1][i]) + unit : "-"}</b></span>`)}
      ${at !== null && html`<span class="quiet">at ${clock(data[0][i] * 1000)}</span>`}
    </figcaption>
    <div ref=${place} class="chart-place"><div ref=${target} aria-hidden="true"></div>
      ${!enough && html`<p class="quiet chart-empty">No samples yet: they come while the migration runs.</p>`}
    </div>
  </figure>`;
}

/** A bit of the line as it is drawn. */
function Key({line}) {
  return html`<svg class="key" width="18" height="8" aria-hidden="true">
    <line x1="0" y1="4" x2="18" y2="4" stroke-width="2" stroke="var(${line.colour})" stroke-dasharray=${(line.dash ?? []).join(" ")}/></svg>`;
}
