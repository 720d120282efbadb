// Asking before something is done. The dialog is the browser's own: it holds the focus,
// closes on Escape, and gives the focus back.

import {html, useLayoutEffect, useRef, useState} from "./html.js";
import {Problem} from "./parts.js";

/**
 * @typedef {object} Question
 * @property {string} title names the deed and its object
 * @property {any} text what follows from it
 * @property {string} yes text of the button that does it
 * @property {boolean} [dangerous]
 * @property {string} [typed] has to be typed first, because it cannot be undone
 * @property {() => Promise<any>} deed
 */

/** @param {{question: Question|null, done: () => void}} props */
export function Dialog({question, done}) {
  if (!question) return null;
  return html`<${Open} question=${question} done=${done}/>`;
}

function Open({question, done}) {
  const box = useRef(null);
  const [typed, setTyped] = useState("");
  const [busy, setBusy] = useState(false);
  const [problem, setProblem] = useState(null);
  useLayoutEffect(() => {
    box.current.showModal();
    return () => box.current?.close();
  }, []);

  const ready = !question.typed || typed.trim() === question.typed;
  const submit = async (e) => {
    e.preventDefault();
    if (!ready || busy) return;
    setBusy(true);
    try {
      await question.deed();
      box.current?.close();
    } catch (error) {
      setProblem(error);
      setBusy(false);
    }
  };
  return html`<dialog ref=${box} aria-labelledby="dialog-title" aria-describedby="dialog-text" onClose=${done}>
    <form onSubmit=${submit}>
      <h2 id="dialog-title">${question.title}</h2>
      <div id="dialog-text">${question.text}</div>
      ${question.typed && html`<label class="field">
        <span>This cannot be undone. To go on, type <code>${question.typed}</code></span>
        <input name="typed" value=${typed} onInput=${(e) => setTyped(e.target.value)} autocomplete="off" autocapitalize="off" spellcheck=${false} autofocus/>
      </label>`}
      ${problem && html`<${Problem} error=${problem}/>`}
      <div class="buttons end">
        <button type="button" class="plain" autofocus=${!question.typed} onClick=${() => box.current.close()}>Leave it</button>
        <button type="submit" class=${question.dangerous ? "danger" : "primary"} disabled=${!ready || busy} aria-busy=${busy}>${question.yes}</button>
      </div>
    </form>
  </dialog>`;
}
