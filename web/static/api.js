// Requests to the service. A token, where the service wants one, is kept for as long
// as the tab lives, and is sent in a header, never in an address.

const tokenKey = "decant-token";

export const token = {
  get: () => sessionStorage.getItem(tokenKey) ?? "",
  set: (/** @type {string} */ value) => sessionStorage.setItem(tokenKey, value),
  clear: () => sessionStorage.removeItem(tokenKey),
};

/** The service refused or failed, and says why and what to do. */
export class Refusal extends Error {
  /**
   * @param {number} status of HTTP
   * @param {string} message
   * @param {string} hint may be empty
   */
  constructor(status, message, hint) {
    super(message);
    this.status = status;
    this.hint = hint;
  }
}

/** No answer came: the service, or the way to it, is gone. */
export class Gone extends Error {}

/** @param {Record<string, string>} more */
export function headers(more = {}) {
  const value = token.get();
  return value ? {...more, Authorization: `Bearer ${value}`} : more;
}

const patienceMilliseconds = 20_000;

/**
 * One request. The answer is what JSON it holds, or null.
 * @param {string} method
 * @param {string} path below /v1
 * @param {{body?: object, key?: string, patience?: number}} [more] what to send; what makes it the
 *   same request when it is sent again; milliseconds to wait
 */
export async function request(method, path, {body, key, patience = patienceMilliseconds} = {}) {
  const more = /** @type {Record<string, string>} */ ({});
  if (body) more["Content-Type"] = "application/json";
  if (key) more["Idempotency-Key"] = key;
  let response;
  let text;
  try {
    response = await fetch(`/v1${path}`, {
      method,
      headers: headers(more),
      body: body && JSON.stringify(body),
      cache: "no-store",
      signal: AbortSignal.timeout(patience),
    });
    text = await response.text();
  } catch (error) {
    throw new Gone(`no answer: ${error instanceof Error ? error.message : error}`);
  }
  if (!response.ok) throw refusalOf(response, text);
  return text ? JSON.parse(text) : null;
}

/**
 * What a problem+json body says, in a sentence.
 * @param {Response} response
 * @param {string} text
 */
export function refusalOf(response, text) {
  let problem;
  try {
    problem = JSON.parse(text);
  } catch {
    problem = {};
  }
  let message = problem.detail || problem.title || `the service answered ${response.status} ${response.statusText}`;
  for (const e of problem.errors ?? []) message += `; ${e.location ? `${e.location}: ` : ""}${e.message}`;
  return new Refusal(response.status, message, problem.hint ?? "");
}

/** A key that nobody else has made. */
export function newKey() {
  return [...crypto.getRandomValues(new Uint32Array(4))].map((n) => n.toString(16)).join("-");
}
