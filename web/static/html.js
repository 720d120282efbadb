// Elements as tagged templates, and the few hooks that components use. What is put
// into a template becomes text or an attribute's value, never markup.

import {h, render} from "./vendor/preact/preact.mjs";
import {useEffect, useLayoutEffect, useMemo, useRef, useState} from "./vendor/preact/hooks.mjs";
import htm from "./vendor/htm/htm.mjs";

const html = htm.bind(h);

export {html, render, useEffect, useLayoutEffect, useMemo, useRef, useState};
