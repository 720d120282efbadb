// The map of a migration's regions, large and as a strip in a list.

import {regionMap} from "./actions.js";
import {printable, size} from "./format.js";
import {html, useEffect, useRef, useState} from "./html.js";
import {cellStates, colours, describe, drawCell, prepare} from "./mapdraw.js";
import {usePaced, useSeen, useTheme, useWidth} from "./measure.js";

const mostCells = 1600;
const wantedHeight = 150; // pixels
const mapPeriod = 500; // milliseconds between fetches
const stripPeriod = 1500;

/**
 * How cells are laid out: as large as fits, within reason.
 * @param {number} cells @param {number} width
 */
function layout(cells, width) {
  const side = Math.min(26, Math.max(9, Math.floor(Math.sqrt((width * wantedHeight) / Math.max(1, cells)))));
  const columns = Math.max(1, Math.floor(width / side));
  return {side, columns, rows: Math.max(1, Math.ceil(cells / columns))};
}

/** The cells of a map, fetched as the migration moves. */
function useCells(record, wanted, period, wait = false) {
  const [cells, setCells] = useState(null);
  usePaced(async () => {
    try {
      setCells(await regionMap(record.summary.id, wanted));
    } catch {
      // The link's own state tells that the service is gone; the old map stays.
    }
  }, period, [record.mapVersion, record.summary.id, wanted], wait || wanted <= 0);
  return cells;
}

/** The large map. With the pointer or the arrow keys its cells tell what they are. */
export function RegionMap({record}) {
  const [place, width] = useWidth();
  const canvas = useRef(null);
  const theme = useTheme();
  const [at, setAt] = useState(-1);
  const wanted = width > 0 ? Math.min(mostCells, Math.floor(width / 9) * Math.floor(wantedHeight / 9)) : 0;
  const cells = useCells(record, wanted, mapPeriod);
  const n = cells?.length ?? 0;
  const {side, columns, rows} = layout(n, width);

  useEffect(() => {
    if (!cells || !width) return;
    const c = prepare(canvas.current, columns * side, rows * side);
    const colour = colours();
    for (const [i, cell] of cells.entries()) {
      drawCell(c, cell, (i % columns) * side, Math.floor(i / columns) * side, side - 1, side - 1, colour);
    }
    if (at >= 0 && at < n) {
      c.strokeStyle = colour.ink;
      c.lineWidth = 2;
      c.strokeRect((at % columns) * side, Math.floor(at / columns) * side, side - 1, side - 1);
    }
  }, [cells, width, theme, at]);

  const point = (e) => {
    const box = canvas.current.getBoundingClientRect();
    const i = Math.floor((e.clientY - box.top) / side) * columns + Math.floor((e.clientX - box.left) / side);
    setAt(i < n ? i : -1);
  };
  const key = (e) => {
    const step = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -n, End: n}[e.key];
    if (!step) return;
    e.preventDefault();
    setAt(Math.min(n - 1, Math.max(0, at < 0 ? 0 : at + step)));
  };
  return html`<div class="map" ref=${place}>
    <canvas ref=${canvas} role="img" tabindex="0" aria-label=${cells ? describe(cells) : "Region map"}
      aria-describedby="map-cell" onPointerMove=${point} onPointerLeave=${() => setAt(-1)} onKeyDown=${key}
      onBlur=${() => setAt(-1)}></canvas>
    <p id="map-cell" class="quiet map-cell" aria-live="polite">${cells ? explain(cells, at, record.summary) : "Reading the map"}</p>
    <${Legend}/>
  </div>`;
}

function explain(cells, at, summary) {
  const total = summary.bytes_total;
  if (cells.length === 0) return "There is no map yet";
  const share = total / Math.max(1, cells.length);
  const cell = cells[at];
  if (!cell) return `${size(total)} from left to right, top to bottom; a cell is ${size(share)}`;
  const text = cellStates.find((s) => s.state === cell.state)?.text ?? printable(cell.state);
  const part = cell.state === "partial" ? ` (${Math.floor(cell.hydrated * 100)} %)` : "";
  return `${size(at * share)} to ${size((at + 1) * share)}: ${text}${part}`;
}

/** What the shapes mean. */
export function Legend() {
  return html`<ul class="legend" aria-label="Legend of the map">
    ${cellStates.map(({state, text}) => html`<li key=${state}><${Swatch} state=${state}/>${text}</li>`)}
  </ul>`;
}

function Swatch({state}) {
  const canvas = useRef(null);
  const theme = useTheme();
  useEffect(() => {
    const c = prepare(canvas.current, 13, 13);
    drawCell(c, {state, hydrated: state === "partial" ? 0.55 : 0}, 0, 0, 13, 13, colours());
  }, [theme]);
  return html`<canvas ref=${canvas} aria-hidden="true"></canvas>`;
}

const stripHeight = 14;
const stripCell = 4;

/** The map as one row of cells; fetched only while it is on the screen. */
export function Strip({record}) {
  const [place, width] = useWidth();
  const [seenPlace, seen] = useSeen();
  const canvas = useRef(null);
  const theme = useTheme();
  const cells = useCells(record, Math.floor(width / stripCell), stripPeriod, !seen);
  useEffect(() => {
    if (!cells || !width) return;
    const c = prepare(canvas.current, width, stripHeight);
    const colour = colours();
    const step = width / Math.max(1, cells.length);
    for (const [i, cell] of cells.entries()) {
      const x = Math.round(i * step);
      const w = Math.max(1, Math.round((i + 1) * step) - x - 1);
      drawCell(c, cell, x, 0, w, stripHeight, colour);
    }
  }, [cells, width, theme]);
  return html`<div class="strip" ref=${place}><div ref=${seenPlace}>
    <canvas ref=${canvas} role="img" aria-label=${cells ? describe(cells) : "Region map"}></canvas>
  </div></div>`;
}
