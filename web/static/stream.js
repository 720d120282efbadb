// The stream of events. It is read with fetch and not with EventSource, which cannot
// send a token. When it breaks it is opened again, from the last event that came.

import {headers, refusalOf} from "./api.js";

const firstDelay = 500; // milliseconds, doubled with every failure
const longestDelay = 5000;
const longestSilence = 40_000; // the service says something every 15 s at least

/**
 * Takes the text of a stream apart into events.
 * @param {(id: string, data: string) => void} onEvent
 */
function parser(onEvent) {
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
 * A stream that is kept open until it is closed.
 * @typedef {{event: (e: any) => void, open: () => void, lost: (error: Error, retryAt: number) => void}} Listener
 */
export class Stream {
  #lastID = "";
  #failures = 0;
  #closed = false;
  #resting = false;
  #cut = new AbortController();
  #wake = () => {};

  /** @param {string} path @param {Listener} on */
  constructor(path, on) {
    this.path = path;
    this.on = on;
    this.#run();
  }

  /** Tries at once, or goes on after a rest. */
  retry() {
    this.#resting = false;
    this.#wake();
  }

  /** Gives the connection up until retry. */
  rest() {
    this.#resting = true;
    this.#cut.abort();
  }

  close() {
    this.#closed = true;
    this.#cut.abort();
    this.#wake();
  }

  async #run() {
    while (!this.#closed) {
      let delay = 2 ** 31 - 1; // of a rest
      try {
        await this.#read();
      } catch (error) {
        if (this.#closed) return;
        if (!this.#resting) {
          delay = Math.min(longestDelay, firstDelay * 2 ** this.#failures++);
          this.on.lost(error instanceof Error ? error : new Error(String(error)), Date.now() + delay);
        }
      }
      await new Promise((resolve) => {
        this.#wake = () => resolve(undefined);
        setTimeout(this.#wake, delay);
      });
    }
  }

  /** Reads until the stream breaks, or says nothing for too long: then it fails. */
  async #read() {
    const cut = new AbortController();
    this.#cut = cut;
    let silence = 0;
    const heard = () => {
      clearTimeout(silence);
      silence = setTimeout(() => cut.abort(new Error("the service has fallen silent")), longestSilence);
    };
    heard();
    try {
      const response = await this.#open(cut.signal);
      const feed = parser((id, data) => {
        this.#lastID = id;
        this.on.event(JSON.parse(data));
      });
      const reader = response.pipeThrough(new TextDecoderStream()).getReader();
      for (let part = await reader.read(); !part.done; part = await reader.read()) {
        heard();
        feed(part.value);
      }
    } finally {
      clearTimeout(silence);
    }
    throw new Error("the service has closed the stream");
  }

  async #open(/** @type {AbortSignal} */ signal) {
    const more = /** @type {Record<string, string>} */ ({Accept: "text/event-stream"});
    if (this.#lastID) more["Last-Event-ID"] = this.#lastID;
    const response = await fetch(this.path, {headers: headers(more), cache: "no-store", signal});
    if (!response.ok || !response.body) throw refusalOf(response, await response.text());
    this.#failures = 0;
    this.on.open();
    return response.body;
  }
}
