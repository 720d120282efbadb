// What components have to know of the place they are drawn in.

import {useEffect, useRef, useState} from "./html.js";

/**
 * The width of an element in CSS pixels, kept up to date.
 * @returns {[{current: any}, number]} what to give the element as its ref; the width
 */
export function useWidth() {
  const ref = useRef(null);
  const [width, setWidth] = useState(0);
  useEffect(() => {
    if (!ref.current) return undefined;
    const watch = new ResizeObserver(([entry]) => setWidth(Math.floor(entry.contentRect.width)));
    watch.observe(ref.current);
    return () => watch.disconnect();
  }, []);
  return [ref, width];
}

/** Whether an element is on the screen, or was. */
export function useSeen() {
  const ref = useRef(null);
  const [seen, setSeen] = useState(false);
  useEffect(() => {
    if (!ref.current) return undefined;
    const watch = new IntersectionObserver(([entry]) => setSeen(entry.isIntersecting));
    watch.observe(ref.current);
    return () => watch.disconnect();
  }, []);
  return [ref, seen];
}

/** Changes when the theme does: what is on canvas has to be drawn again. */
export function useTheme() {
  const query = useRef(matchMedia("(prefers-color-scheme: dark)")).current;
  const [dark, setDark] = useState(query.matches);
  useEffect(() => {
    const change = () => setDark(query.matches);
    query.addEventListener("change", change);
    return () => query.removeEventListener("change", change);
  }, []);
  return dark ? "dark" : "light";
}

/**
 * Fetches now, whenever a key changes, and no more often than every period: what
 * comes in between is made up for at its end.
 * @param {() => Promise<void>} fetch handles its own failures
 * @param {number} period milliseconds
 * @param {any[]} keys
 * @param {boolean} [wait] fetches nothing yet
 */
export function usePaced(fetch, period, keys, wait = false) {
  const pace = useRef({last: 0, timer: 0, latest: fetch});
  pace.current.latest = fetch;
  useEffect(() => {
    const p = pace.current;
    if (p.timer || wait) return;
    p.timer = setTimeout(() => {
      p.timer = 0;
      p.last = Date.now();
      p.latest();
    }, Math.max(0, p.last + period - Date.now()));
  }, [...keys, wait]);
  useEffect(() => () => clearTimeout(pace.current.timer), []);
}
