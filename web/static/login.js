// The form for the token, where the service wants one.

import {html, useLayoutEffect, useRef, useState} from "./html.js";
import {known, logIn} from "./store.js";

export function LogIn() {
  const [value, setValue] = useState("");
  const field = useRef(null);
  useLayoutEffect(() => field.current.focus(), []);
  const submit = (e) => {
    e.preventDefault();
    if (value.trim()) logIn(value.trim());
  };
  return html`<form class="login" onSubmit=${submit} aria-labelledby="login">
    <h1 id="login">Token</h1>
    <p>This service wants a token. It is in the file that <code>hydrated</code> was given for it, on the machine that it runs on.</p>
    <label class="field"><span>Token</span>
      <input ref=${field} type="password" name="token" autocomplete="current-password" value=${value} onInput=${(e) => setValue(e.target.value)}
        aria-invalid=${known.tokenRefused} aria-describedby=${known.tokenRefused ? "token-refused" : undefined}/></label>
    ${known.tokenRefused && html`<p id="token-refused" class="notice bad" role="alert">The service does not know this token.</p>`}
    <p class="quiet small">It is kept until this tab is closed, and nowhere else.</p>
    <div class="buttons"><button class="primary" disabled=${!value.trim()}>Go on</button></div>
  </form>`;
}
