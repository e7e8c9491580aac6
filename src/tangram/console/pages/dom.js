// Elements, lists that change in place, and words for numbers.

/** h("p", { class: "note", onclick: f, "aria-label": "x" }, "text", element, null) */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(9).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/**
 * Show items as the children of an element, one element for each key.
 * An item that has not changed keeps its element, so that focus, selection and open folds stay.
 */
export function show(parent, items, keyOf, build) {
  const known = new Map([...parent.children].map((element) => [element.dataset.key, element]));
  const wanted = items.map((item) => {
    const key = String(keyOf(item));
    const told = JSON.stringify(item);
    const before = known.get(key);
    known.delete(key);
    if (before && before.told === told) return before;
    const element = build(item);
    element.dataset.key = key;
    element.told = told;
    if (before) {
      before.querySelectorAll("details[open]").forEach((fold, index) => {
        const same = element.querySelectorAll("details")[index];
        if (same) same.open = true;
      });
      if (before.contains(document.activeElement)) {
        const at = [...before.querySelectorAll("button, summary, a")].indexOf(document.activeElement);
        before.replaceWith(element);
        element.querySelectorAll("button, summary, a")[at]?.focus();
      } else before.replaceWith(element);
    }
    return element;
  });
  for (const old of known.values()) old.remove();
  wanted.forEach((element, index) => {
    if (parent.children[index] !== element) parent.insertBefore(element, parent.children[index] ?? null);
  });
}

export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** A button that asks once more before it acts. */
export function sureButton(text, label, act) {
  let armed = 0;
  const button = h("button", { type: "button", class: "quiet", "aria-label": label }, text);
  button.addEventListener("click", () => {
    if (armed) {
      clearTimeout(armed);
      armed = 0;
      button.textContent = text;
      button.classList.remove("armed");
      act();
      return;
    }
    button.textContent = `Sure? ${text}`;
    button.classList.add("armed");
    armed = setTimeout(() => {
      armed = 0;
      button.textContent = text;
      button.classList.remove("armed");
    }, 4000);
  });
  return button;
}

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

export function bytes(value) {
  let unit = 0;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${value >= 100 || unit === 0 ? Math.round(value) : value.toFixed(1)} ${UNITS[unit]}`;
}

export function count(value) {
  if (value >= 1e6) return `${(value / 1e6).toFixed(1)} M`;
  if (value >= 1e4) return `${(value / 1e3).toFixed(1)} k`;
  return value >= 100 || Number.isInteger(value) ? String(Math.round(value)) : value.toFixed(1);
}

export function span(seconds) {
  if (seconds < 0.001) return `${Math.round(seconds * 1e6)} µs`;
  if (seconds < 1) return `${(seconds * 1000).toFixed(seconds < 0.01 ? 1 : 0)} ms`;
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86_400)} d ${Math.floor((seconds % 86_400) / 3600)} h`;
}

const two = (value) => String(value).padStart(2, "0");

export function clock(at) {
  const date = new Date(at * 1000);
  return `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
}
