// The frame of the page: which view is shown, and how the link to the service is.

import {token} from "./api.js";
import {Detail} from "./detail.js";
import {clock, duration} from "./format.js";
import {html, useEffect, useLayoutEffect, useRef, useState} from "./html.js";
import {List} from "./list.js";
import {LogIn} from "./login.js";
import {NewForm} from "./newform.js";
import {Pools} from "./pools.js";
import {known, logOut, retry, useKnown} from "./store.js";

/** The view that the address names. */
function useRoute() {
  const [route, setRoute] = useState(location.hash);
  useEffect(() => {
    const change = () => setRoute(location.hash);
    addEventListener("hashchange", change);
    return () => removeEventListener("hashchange", change);
  }, []);
  const id = /^#\/m\/(.+)$/.exec(route);
  if (id) return {name: "detail", id: decoded(id[1])};
  return {name: route === "#/new" ? "new" : "list", id: ""};
}

function decoded(/** @type {string} */ text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

export function App() {
  useKnown();
  const route = useRoute();
  const main = useRef(null);
  const first = useRef(true);
  useLayoutEffect(() => { // at once: later it would take the focus from whoever types already
    document.title = {list: "decant", new: "New migration - decant", detail: `${route.id} - decant`}[route.name];
    if (first.current) {
      first.current = false; // whoever has just come begins at the top
      return;
    }
    scrollTo(0, 0);
    main.current?.querySelector("h1")?.focus();
  }, [route.name, route.id]);

  return html`<a class="skip" href="#main" onClick=${(e) => { e.preventDefault(); main.current.focus(); }}>To the content</a>
    <header><a class="brand" href="#/"><img src="/icon.svg" width="20" height="20" alt=""/>decant</a><${Link}/>
      ${token.get() !== "" && html`<button class="plain small" onClick=${logOut}>Forget token</button>`}</header>
    <${GoneBanner}/>
    <main id="main" ref=${main} tabindex="-1">${known.needsToken ? html`<${LogIn}/>` : view(route)}</main>`;
}

function view(route) {
  switch (route.name) {
    case "detail":
      return html`<${Detail} id=${route.id} key=${route.id}/>`;
    case "new":
      return html`<${NewForm}/>`;
    default:
      return html`<${List}/><${Pools}/>`;
  }
}

const linkTexts = {connecting: "connecting", live: "live", gone: "no answer"};

function Link() {
  return html`<span class=${`link ${known.link}`} data-link=${known.link}><span class="dot" aria-hidden="true"></span>${linkTexts[known.link]}</span>`;
}

/** Tells that the service is gone, since when, and when it is tried again. */
function GoneBanner() {
  const [now, setNow] = useState(Date.now());
  const gone = known.link === "gone";
  useEffect(() => {
    if (!gone) return undefined;
    setNow(Date.now());
    const timer = setInterval(() => setNow(Date.now()), 1000);
    return () => clearInterval(timer);
  }, [gone]);
  if (!gone) return null;
  const seconds = Math.max(0, (known.retryAt - now) / 1000);
  return html`<div class="banner" role="alert">
    <span><strong>The service has not answered since ${clock(known.since)}.</strong> ${known.loaded ? "What is shown here is from then. " : ""}Migrations
    are safe: it goes on with them when it comes back.</span>
    <span class="retry" aria-live="off">${seconds >= 1 ? `Next try in ${duration(seconds)}.` : "Trying…"}
      <button class="plain" onClick=${retry}>Try now</button></span>
  </div>`;
}
