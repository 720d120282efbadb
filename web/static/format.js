// Numbers, times and names as people read them. Units are powers of 1024.

const unitNames = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/**
 * A size with its unit, in three digits: "1.50 GiB".
 * @param {number|null|undefined} bytes
 */
export function size(bytes) {
  if (bytes == null || !Number.isFinite(bytes)) return "-";
  let value = Math.abs(bytes);
  let unit = 0;
  while (value >= 1023.5 && unit < unitNames.length - 1) {
    value /= 1024;
    unit++;
  }
  const digits = unit === 0 || value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;
  return `${bytes < 0 ? "-" : ""}${value.toFixed(digits)} ${unitNames[unit]}`;
}

/** A rate with its unit. @param {number|null|undefined} bytesPerSecond */
export function rate(bytesPerSecond) {
  return bytesPerSecond == null ? "-" : `${size(bytesPerSecond)}/s`;
}

/** A count with its digits in groups. @param {number|null|undefined} n */
export function count(n) {
  return n == null ? "-" : n.toLocaleString("en").replaceAll(",", "\u202f");
}

/**
 * The whole percentage that part is of whole. It is 100 only where nothing is left.
 * @param {number} part
 * @param {number} whole
 */
export function percent(part, whole) {
  if (part >= whole) return 100;
  return Math.max(0, Math.floor((part / whole) * 100));
}

/** A duration: "42 s", "3 min 20 s", "5 h 10 min", "3 d 4 h". @param {number|null|undefined} seconds */
export function duration(seconds) {
  if (seconds == null || !Number.isFinite(seconds) || seconds < 0) return "-";
  const s = Math.round(seconds);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor(s / 60) % 60} min`;
  const days = Math.floor(s / 86400);
  return days > 1000 ? "more than 1000 d" : `${days} d ${Math.floor(s / 3600) % 24} h`;
}

const pad = (/** @type {number} */ n) => String(n).padStart(2, "0");

/** The time of day of a point in time. @param {string|number|Date} when */
export function clock(when) {
  const t = new Date(when);
  return `${pad(t.getHours())}:${pad(t.getMinutes())}:${pad(t.getSeconds())}`;
}

/** A point in time: the time of day, with the date unless it is today. @param {string|number|Date} when */
export function moment(when) {
  const t = new Date(when);
  if (Number.isNaN(t.getTime()) || t.getFullYear() < 1971) return "-";
  if (t.toDateString() === new Date().toDateString()) return clock(t);
  return `${t.getFullYear()}-${pad(t.getMonth() + 1)}-${pad(t.getDate())} ${clock(t)}`;
}

// Control characters, text direction marks, lone surrogates, what is not assigned,
// and spaces that are not the usual one.
const unprintable = /[\p{C}\p{Zl}\p{Zp}]|(?! )\p{Zs}/u;

/**
 * Takes a text apart into what prints as itself and what does not. The latter is
 * written as an escape, so that it can neither hide nor turn the text around.
 * @param {string} text
 * @returns {{text: string, escaped: boolean}[]}
 */
export function pieces(text) {
  const list = [];
  let plain = "";
  for (const character of text) {
    if (!unprintable.test(character)) {
      plain += character;
      continue;
    }
    if (plain) list.push({text: plain, escaped: false});
    plain = "";
    list.push({text: escapeOf(character), escaped: true});
  }
  if (plain) list.push({text: plain, escaped: false});
  return list;
}

function escapeOf(/** @type {string} */ character) {
  const known = {"\n": "\\n", "\r": "\\r", "\t": "\\t"};
  if (character in known) return known[/** @type {"\n"} */ (character)];
  return `\\u{${(character.codePointAt(0) ?? 0).toString(16)}}`;
}

/** The whole text with escapes, for attributes and titles. @param {string} text */
export function printable(text) {
  return pieces(text).map((piece) => piece.text).join("");
}

/** The last part of a path or an address. @param {string} name */
export function lastPart(name) {
  return name.replace(/\/+$/, "").split("/").pop() || name;
}
