// What the page asks the service for, and has it do. All of these fail with a Refusal or
// with Gone.

import {ask, changed, record, refresh, take} from "./store.js";

/** Everything about one migration, with a map. @param {string} id @param {number} cells */
export async function detail(id, cells) {
  const d = await ask("GET", `/migrations/${encodeURIComponent(id)}?cells=${cells}`);
  take(d);
  record(id).history.seed(d);
  changed();
  return d;
}

/** The map of a migration. @param {string} id @param {number} cells */
export async function regionMap(id, cells) {
  return (await ask("GET", `/migrations/${encodeURIComponent(id)}/map?cells=${cells}`)).cells;
}

const longPatience = 120_000; // a pause returns when what was copied is committed

/** Has the service do something with a migration. @param {string} id @param {string} verb @param {object} [body] */
export async function act(id, verb, body) {
  const answer = await ask("POST", `/migrations/${encodeURIComponent(id)}/${verb}`, {body: body ?? {}, patience: longPatience});
  await refresh();
  return answer;
}

/** Changes the limits of a migration. @param {string} id @param {object} limits */
export async function limit(id, limits) {
  await ask("PATCH", `/migrations/${encodeURIComponent(id)}`, {body: limits});
  await refresh();
}

/** Finds out whether a migration could be started. @param {object} wanted @returns {Promise<any>} the plan */
export function check(wanted) {
  return ask("POST", "/migrations", {body: {...wanted, dry_run: true}, patience: longPatience});
}

/** Starts a migration. @param {object} wanted @param {string} key the same again starts no other @returns {Promise<any>} its status */
export async function migrate(wanted, key) {
  const status = await ask("POST", "/migrations", {body: wanted, key, patience: longPatience});
  await refresh();
  return status;
}
