// Elements from data. What comes from files, models or the service is only ever set as text or as an attribute's value.

export const find = (id) => document.getElementById(id);

export function make(tag, given = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (value === undefined || value === null || value === false) continue;
    if (typeof value === "function") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export function show(element, visible) {
  element.hidden = !visible;
}

export const percent = (score) => (score > 0 && score < 0.005 ? "< 1 %" : `${Math.round(score * 100)} %`);

/** Replace what follows an element's heading. */
export function fill(element, ...children) {
  element.replaceChildren(...element.querySelectorAll(":scope > h2"), ...children);
}
