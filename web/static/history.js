// What the counters of one migration were over time, for the charts. The service keeps
// no such record: the page remembers what it has seen since it was opened, and begins
// with what the last transactions tell.

const mostSamples = 720;
const still = ["started", "done", "stopped", "failed"]; // events at which nothing moves
const shortestStep = 0.4; // seconds between samples that are worth keeping

/**
 * @typedef {object} Sample
 * @property {number} time seconds since 1970
 * @property {number} rate bytes per second
 * @property {number} copied bytes
 * @property {number} discarded bytes
 */

export class History {
  constructor() {
    /** @type {Sample[]} the oldest first */
    this.samples = [];
    this.seeded = false;
    /** @type {any} what was observed last */
    this.observed = null;
  }

  /** @param {any} e an event */
  add(e) {
    const sample = {
      time: Date.parse(e.time) / 1000,
      rate: still.includes(e.event) ? 0 : e.rate_bytes_per_second,
      copied: e.bytes_copied,
      discarded: e.bytes_discarded,
    };
    const last = this.samples.at(-1);
    if (last && sample.time <= last.time) return;
    // The newest sample is replaced until the one before it is old enough.
    const before = this.samples.at(-2);
    if (before && sample.time - before.time < shortestStep) this.samples.pop();
    this.samples.push(sample);
    this.#thin();
  }

  /**
   * What an event would say of a migration that another process works on: of those
   * there are none, and what is known is in the list.
   * @param {any} summary
   */
  observe(summary) {
    const now = Date.now();
    const before = this.samples.at(-1);
    const copied = summary.bytes_copied;
    const elapsed = before ? now / 1000 - before.time : 0;
    if (this.observed && elapsed < 1) return this.observed; // too soon to tell a rate
    const moved = before ? Math.max(0, copied - before.copied) : 0;
    const e = {
      event: "progress", time: new Date(now).toISOString(), transaction: summary.transaction,
      bytes_total: summary.bytes_total, bytes_copied: copied, bytes_committed: copied,
      bytes_discarded: Math.min(copied, summary.regions_discarded * summary.region_bytes),
      rate_bytes_per_second: elapsed > 0 ? moved / elapsed : 0, peak_extra_bytes: summary.peak_extra_bytes, eta_seconds: null,
    };
    this.add(e);
    this.observed = e;
    return e;
  }

  /** Drops every second sample of the older half when there are too many. */
  #thin() {
    if (this.samples.length <= mostSamples) return;
    const half = mostSamples / 2;
    this.samples = this.samples.filter((_, i) => i >= half || i % 2 === 0);
  }

  /**
   * Puts what the transactions tell before what was seen. They are the newest first,
   * and what was copied then follows from what is copied now.
   * @param {any} detail
   */
  seed(detail) {
    if (this.seeded) return;
    this.seeded = true;
    const list = (detail.transactions ?? []).filter((/** @type {any} */ t) => t.direction === detail.direction);
    let copied = detail.bytes_copied;
    const earlier = [];
    for (const [i, t] of list.entries()) {
      const time = Date.parse(t.committed) / 1000;
      const elapsed = i + 1 < list.length ? time - Date.parse(list[i + 1].committed) / 1000 : 0;
      if (elapsed > 0) { // of the oldest nobody knows how long it took
        earlier.push({time, rate: t.copied_bytes / elapsed, copied, discarded: copied - pendingAt(list.slice(i), time)});
      }
      copied -= t.copied_bytes;
    }
    const first = this.samples[0]?.time ?? Infinity;
    this.samples.unshift(...earlier.reverse().filter((s) => s.time < first));
  }
}

/**
 * The bytes of these transactions whose source had not been discarded at a time.
 * @param {any[]} transactions
 * @param {number} time
 */
function pendingAt(transactions, time) {
  let bytes = 0;
  for (const t of transactions) {
    if (!t.discarded_at || Date.parse(t.discarded_at) / 1000 > time) bytes += t.copied_bytes;
  }
  return bytes;
}
