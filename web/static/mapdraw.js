// How the states of regions are drawn. Each has a shape of its own, so that the map can
// be read without telling colours apart: what is copied fills its cell from below, and
// what was freed on the source has a hole punched into it.

/** @typedef {{state: string, hydrated: number}} Cell */
/** @typedef {{line: string, accent: string, soft: string, bad: string, paper: string, ink: string}} Colours */

/** The states in the order of the legend. */
export const cellStates = [
  {state: "unhydrated", text: "not copied yet"},
  {state: "partial", text: "copied in part"},
  {state: "dirty", text: "copied, not committed"},
  {state: "hydrated", text: "committed"},
  {state: "discarded", text: "committed, freed on the source"},
  {state: "bad", text: "cannot be read"},
];

/** @returns {Colours} those of the theme that is in force */
export function colours() {
  const style = getComputedStyle(document.documentElement);
  const value = (/** @type {string} */ name) => style.getPropertyValue(name).trim();
  return {
    line: value("--cell-line"), accent: value("--cell"), soft: value("--cell-soft"),
    bad: value("--bad"), paper: value("--paper"), ink: value("--ink"),
  };
}

/**
 * Draws one cell into a rectangle.
 * @param {CanvasRenderingContext2D} c
 * @param {Cell} cell
 * @param {number} x @param {number} y @param {number} w @param {number} h
 * @param {Colours} colour
 */
export function drawCell(c, cell, x, y, w, h, colour) {
  switch (cell.state) {
    case "bad":
      c.fillStyle = colour.bad;
      c.fillRect(x, y, w, h);
      cross(c, x, y, w, h, colour.paper);
      return;
    case "hydrated":
      c.fillStyle = colour.accent;
      c.fillRect(x, y, w, h);
      return;
    case "discarded":
      c.fillStyle = colour.soft;
      c.fillRect(x, y, w, h);
      hole(c, x, y, w, h, colour.paper);
      return;
    case "dirty":
      outline(c, x, y, w, h, colour.accent);
      stripes(c, x, y, w, h, colour.accent);
      fillFromBelow(c, cell, x, y, w, h, colour.accent);
      return;
    default:
      outline(c, x, y, w, h, colour.line);
      fillFromBelow(c, cell, x, y, w, h, colour.accent);
  }
}

/** @param {CanvasRenderingContext2D} c @param {number} x @param {number} y @param {number} w @param {number} h @param {string} colour */
function outline(c, x, y, w, h, colour) {
  c.strokeStyle = colour;
  c.lineWidth = 1;
  c.strokeRect(x + 0.5, y + 0.5, w - 1, h - 1);
}

/** @param {CanvasRenderingContext2D} c @param {Cell} cell @param {number} x @param {number} y @param {number} w @param {number} h @param {string} colour */
function fillFromBelow(c, cell, x, y, w, h, colour) {
  if (!(cell.hydrated > 0)) return;
  const filled = Math.max(1, Math.round((h - 1) * Math.min(1, cell.hydrated)));
  c.fillStyle = colour;
  c.fillRect(x, y + h - filled, w, filled);
}

/** @param {CanvasRenderingContext2D} c @param {number} x @param {number} y @param {number} w @param {number} h @param {string} colour */
function hole(c, x, y, w, h, colour) {
  const side = Math.max(2, Math.round(Math.min(w, h) * 0.34));
  c.fillStyle = colour;
  c.fillRect(x + Math.floor((w - side) / 2), y + Math.floor((h - side) / 2), side, side);
}

/** @param {CanvasRenderingContext2D} c @param {number} x @param {number} y @param {number} w @param {number} h @param {string} colour */
function cross(c, x, y, w, h, colour) {
  c.strokeStyle = colour;
  c.lineWidth = Math.max(1, Math.min(w, h) / 7);
  c.beginPath();
  c.moveTo(x + w * 0.25, y + h * 0.25);
  c.lineTo(x + w * 0.75, y + h * 0.75);
  c.moveTo(x + w * 0.75, y + h * 0.25);
  c.lineTo(x + w * 0.25, y + h * 0.75);
  c.stroke();
}

/** @param {CanvasRenderingContext2D} c @param {number} x @param {number} y @param {number} w @param {number} h @param {string} colour */
function stripes(c, x, y, w, h, colour) {
  c.save();
  c.beginPath();
  c.rect(x, y, w, h);
  c.clip();
  c.strokeStyle = colour;
  c.lineWidth = 1.5;
  c.beginPath();
  for (let d = -h; d < w; d += 4) {
    c.moveTo(x + d, y + h);
    c.lineTo(x + d + h, y);
  }
  c.stroke();
  c.restore();
}

/**
 * Makes a canvas as sharp as the screen and clears it.
 * @param {HTMLCanvasElement} canvas
 * @param {number} width @param {number} height of it, in CSS pixels
 * @returns {CanvasRenderingContext2D}
 */
export function prepare(canvas, width, height) {
  const scale = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const c = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  c.scale(scale, scale);
  return c;
}

/** What a map shows, in a sentence. @param {Cell[]} cells */
export function describe(cells) {
  const parts = [];
  for (const {state, text} of cellStates) {
    const n = cells.filter((cell) => cell.state === state).length;
    if (n > 0) parts.push(`${n} ${text}`);
  }
  return `Region map of ${cells.length} parts: ${parts.join(", ") || "empty"}`;
}
