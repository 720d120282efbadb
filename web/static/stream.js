// The stream of events. It is read with fetch and not with EventSource, which cannot
// send a token. When it breaks it is opened again, from the last event that came.

import {headers, refusalOf} from "./api.js";

const firstDelay = 500; // milliseconds, doubled with every failure
const longestDelay = 5000;

/**
 * Takes the text of a stream apart into events.
 * @param {(id: string, data: string) => void} onEvent
 */
export function parser(onEvent) {
  let rest = "";
  let id = "";
  let data = /** @type {string[]} */ ([]);
  const line = (/** @type {string} */ text) => {
    if (text === "") {
      if (data.length > 0) onEvent(id, data.join("\n"));
      data = [];
      return;
    }
    const colon = text.indexOf(":");
    const field = colon < 0 ? text : text.slice(0, colon);
    const value = colon < 0 ? "" : text.slice(colon + 1).replace(/^ /, "");
    if (field === "data") data.push(value);
    if (field === "id") id = value;
  };
  return (/** @type {string} */ chunk) => {
    const lines = (rest + chunk).split("\n");
    rest = lines.pop() ?? "";
    for (const text of lines) line(text.replace(/\r$/, ""));
  };
}

/**
 * Keeps a stream open for good.
 * @param {string} path
 * @param {{event: (e: any) => void, open: () => void, lost: (error: Error, retryAt: number) => void}} on
 * @returns {{retry: () => void, close: () => void}} to try again at once; to end it
 */
export function follow(path, on) {
  let lastID = "";
  let failures = 0;
  let wake = () => {};
  const ended = new AbortController();

  async function readOnce() {
    const more = {Accept: "text/event-stream"};
    const response = await fetch(path, {
      headers: headers(lastID ? {...more, "Last-Event-ID": lastID} : more),
      cache: "no-store",
      signal: ended.signal,
    });
    if (!response.ok || !response.body) throw refusalOf(response, await response.text());
    failures = 0;
    on.open();
    const feed = parser((id, data) => {
      lastID = id;
      on.event(JSON.parse(data));
    });
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let part = await reader.read(); !part.done; part = await reader.read()) feed(part.value);
    throw new Error("the service has closed the stream");
  }

  async function run() {
    while (!ended.signal.aborted) {
      try {
        await readOnce();
      } catch (error) {
        if (ended.signal.aborted) return;
        const delay = Math.min(longestDelay, firstDelay * 2 ** failures++);
        on.lost(error instanceof Error ? error : new Error(String(error)), Date.now() + delay);
        await new Promise((resolve) => {
          wake = () => resolve(undefined);
          setTimeout(wake, delay);
        });
      }
    }
  }

  run();
  return {retry: () => wake(), close: () => { ended.abort(); wake(); }};
}
