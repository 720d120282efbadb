// All that the page knows, and the only place that asks the service. Components read
// it, and are drawn again when it changes.

import {Gone, Refusal, request, token} from "./api.js";
import {lastPart, printable} from "./format.js";
import {History} from "./history.js";
import {useEffect, useState} from "./html.js";
import {order, orderOf, stateOf, stateText} from "./states.js";
import {Stream} from "./stream.js";

const refreshPeriod = 5000; // milliseconds, for what no event tells
const mostListed = 1000; // of what is over
const mostEvents = 200; // kept of one migration

/**
 * @typedef {object} Record one migration
 * @property {any} summary
 * @property {any} event the newest, which has the newest counters
 * @property {History} history
 * @property {any[]} log events that a person wants to read, the newest first
 * @property {number} mapVersion counts what may have changed the map
 */

export const known = {
  /** @type {"connecting"|"live"|"gone"} */ link: "connecting",
  since: Date.now(), // when the link was last there, while it is gone
  retryAt: 0,
  linkProblem: "",
  needsToken: false,
  tokenRefused: false,
  loaded: false,
  total: 0,
  partial: false, // not all of them are here
  /** @type {Map<string, Record>} */ migrations: new Map(),
  /** @type {any[]|null} */ pools: null,
  /** @type {any} */ poolsProblem: null,
  /** @type {any} */ problem: null,
};

const opened = Date.now(); // what is older has happened before somebody looked

/** @type {Set<(version: number) => void>} */
const watchers = new Set();
let version = 0;
let scheduled = false;

/** Has everything drawn again, once for all changes until the next frame. */
export function changed() {
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => {
    scheduled = false;
    version++;
    for (const watcher of watchers) watcher(version);
  });
}

/** Draws the component again whenever something changes. */
export function useKnown() {
  const [, draw] = useState(0);
  useEffect(() => {
    watchers.add(draw);
    draw(version);
    return () => { watchers.delete(draw); };
  }, []);
  return known;
}

/** Says something to people who do not see the page. @param {string} text */
export function announce(text) {
  const place = document.getElementById("announcements");
  if (place) place.textContent = text;
}

/** What is known of a migration. @param {string} id */
export function record(id) {
  let r = known.migrations.get(id);
  if (!r) {
    r = {summary: {id}, event: null, history: new History(), log: [], mapVersion: 0};
    known.migrations.set(id, r);
  }
  return r;
}

/** Notes what the service says of a migration. @param {any} summary */
export function take(summary) {
  const r = record(summary.id);
  const before = r.summary.source === undefined ? null : stateOf(r.summary);
  if (r.summary.regions_hydrated !== summary.regions_hydrated || r.summary.regions_discarded !== summary.regions_discarded) r.mapVersion++;
  r.summary = summary;
  r.event = stateOf(summary) === "external" ? r.history.observe(summary) : newer(r.event, summary.event);
  const now = stateOf(r.summary);
  if (before !== null && before !== now) {
    r.mapVersion++;
    announce(`${printable(lastPart(summary.source))}: ${stateText(now)}${summary.reason ? `: ${printable(summary.reason)}` : ""}`);
  }
}

/** The newer one of two events, either of which may be missing. @param {any} a @param {any} b */
function newer(a, b) {
  if (!a || !b) return a ?? b ?? null;
  return Date.parse(b.time) > Date.parse(a.time) ? b : a;
}

/** Notes how a request went, for the state of the link. @param {unknown} error */
function noteFailure(error) {
  if (error instanceof Gone) lost(error, 0);
  if (error instanceof Refusal && error.status === 401) askForToken();
}

function askForToken() {
  known.tokenRefused = token.get() !== "";
  known.needsToken = true;
  known.link = "connecting";
  close();
  changed();
}

/** @param {Error} error @param {number} retryAt */
function lost(error, retryAt) {
  if (error instanceof Refusal && error.status === 401) {
    askForToken();
    return;
  }
  if (known.link !== "gone") {
    known.since = Date.now();
    announce("The service does not answer.");
  }
  known.link = "gone";
  known.linkProblem = error.message;
  known.retryAt = retryAt || known.retryAt;
  changed();
}

/** A request whose failures say something about the link. */
export async function ask(/** @type {string} */ method, /** @type {string} */ path, /** @type {any} */ more = undefined) {
  try {
    return await request(method, path, more);
  } catch (error) {
    noteFailure(error);
    throw error;
  }
}

let refreshing = false;
let refreshAgain = false;

/** Reads the list of migrations and the pools. */
export async function refresh() {
  if (refreshing) {
    refreshAgain = true;
    return;
  }
  refreshing = true;
  try {
    const {migrations, total} = await ask("GET", `/migrations?limit=${mostListed}`);
    known.total = total;
    known.partial = total > migrations.length;
    if (known.partial) migrations.push(...await unfinished());
    const there = new Set(migrations.map((/** @type {any} */ s) => s.id));
    if (!known.partial) for (const id of known.migrations.keys()) if (!there.has(id)) known.migrations.delete(id);
    for (const summary of migrations) take(summary);
    known.loaded = true;
    known.problem = null;
    await refreshPools();
  } catch (error) {
    if (!(error instanceof Gone)) known.problem = error; // of one that is gone the link tells
  }
  refreshing = false;
  changed();
  if (refreshAgain) {
    refreshAgain = false;
    soon();
  }
}

/** What is not over, also where it is older than the newest that are listed. */
async function unfinished() {
  const lists = await Promise.all(order.map((state) => ask("GET", `/migrations?limit=${mostListed}&state=${state}`)));
  return lists.flatMap((list) => list.migrations);
}

async function refreshPools() {
  try {
    known.pools = (await ask("GET", "/pools")).pools ?? [];
    known.poolsProblem = null;
  } catch (error) {
    if (error instanceof Gone) throw error;
    known.poolsProblem = error;
  }
}

let timer = 0;
function soon() {
  if (timer) return; // events that come one after the other must not put it off for ever
  timer = setTimeout(() => {
    timer = 0;
    refresh();
  }, 150);
}

/** @param {any} e an event of the stream */
function onEvent(e) {
  if (!e.id) { // a gap: events were lost, the state is not
    soon();
    return;
  }
  if (!known.migrations.has(e.id)) soon();
  const r = record(e.id);
  if (e.event !== "progress" || e.bytes_copied !== r.event?.bytes_copied) r.mapVersion++;
  r.event = newer(r.event, e);
  r.history.add(e);
  if (e.event !== "progress" && e.event !== "committed") {
    r.log = [e, ...r.log].slice(0, mostEvents);
    soon();
  }
  if (e.event === "warning" && Date.parse(e.time) > opened) announce(`${printable(lastPart(r.summary.source))}: ${printable(e.message ?? "")}`);
  changed();
}

/** @type {Stream|null} */
let stream = null;
let ticking = 0;

/** Reads what there is, then opens the stream and keeps everything up to date. */
export async function start() {
  close();
  known.needsToken = false;
  await refresh();
  if (known.needsToken) return;
  stream = new Stream("/v1/events?after=0", {
    event: onEvent,
    open: () => {
      if (known.link === "gone") announce("The service answers again.");
      known.link = "live";
      known.needsToken = false;
      refresh();
      changed();
    },
    lost,
  });
  ticking = setInterval(() => {
    if (!document.hidden && known.link === "live") refresh();
  }, refreshPeriod);
  changed();
}

function close() {
  stream?.close();
  stream = null;
  clearInterval(ticking);
  clearTimeout(leaving);
}

const patienceWhenHidden = 60_000;
let leaving = 0;

/**
 * Gives the stream up while nobody looks, since a browser has few connections for all
 * of its tabs, and opens it again, from where it was, when somebody does.
 */
export function watchVisibility() {
  document.addEventListener("visibilitychange", () => {
    clearTimeout(leaving);
    if (document.hidden) leaving = setTimeout(() => stream?.rest(), patienceWhenHidden);
    else stream?.retry();
  });
}

/** Tries at once to reach the service. */
export function retry() {
  stream?.retry();
}

/** @param {string} value of the token that somebody gave */
export function logIn(value) {
  token.set(value);
  start();
}

export function logOut() {
  token.clear();
  known.migrations.clear();
  known.loaded = false;
  known.tokenRefused = false;
  start();
}

/** The migrations: those that something is done for first, then the newest. */
export function inOrder() {
  const weight = (/** @type {Record} */ r) => orderOf(r.summary);
  const listed = [...known.migrations.values()].filter((r) => r.summary.source !== undefined);
  const place = (/** @type {Record} */ r) => r.summary.position || 0; // of those that wait
  return listed.sort((a, b) => weight(a) - weight(b) || place(a) - place(b) ||
    String(b.summary.created ?? "").localeCompare(String(a.summary.created ?? "")) || a.summary.id.localeCompare(b.summary.id));
}
