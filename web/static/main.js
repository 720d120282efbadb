import {App} from "./app.js";
import {html, render} from "./html.js";
import {start, watchVisibility} from "./store.js";

render(html`<${App}/>`, document.getElementById("page"));
start();
watchVisibility();
