// The picture, and boxes over it that follow the threshold without asking anybody again.
import { colour } from "./colours.js";
import { find, make, percent, show } from "./dom.js";

let url = null;

/** All objects of a result, best first. */
export function objectsOf(result) {
  const found = Object.values(result || {}).flatMap((part) => (part && part.objects) || []);
  return found.sort((one, other) => other.score - one.score);
}

/** Show a photo and its boxes; one that the browser cannot show, as the service drew it. */
export async function showPicture(photo) {
  if (url) URL.revokeObjectURL(url);
  const drawn = photo.result && photo.result.rendered;
  const source = photo.unshowable ? drawn && blobOf(drawn) : photo.file;
  url = source ? URL.createObjectURL(source) : null;
  const frame = find("frame");
  find("stage-title").textContent = photo.name;
  find("stage-note").textContent = "This browser cannot show the file itself: here is the service's own drawing.";
  show(find("stage-note"), photo.unshowable && Boolean(drawn));
  if (!url) {
    frame.replaceChildren(make("p", { class: "placeholder muted" }, photo.error ? "no picture to show" : "waiting for the service"));
    return;
  }
  const sentence = captionOf(photo.result);
  const picture = make("img", { src: url, alt: sentence ? `${photo.name}: ${sentence}` : photo.name });
  const layer = make("div", { class: "boxes", "aria-hidden": "true" });
  if (!photo.unshowable) layer.append(...objectsOf(photo.result).map(boxOf));
  frame.replaceChildren(make("div", { class: "picture" }, picture, layer));
}

export function captionOf(result) {
  return Object.values(result || {}).map((part) => part && part.caption).find(Boolean) || "";
}

function boxOf(found, index) {
  const [x1, y1, x2, y2] = found.box_normalized;
  const box = make("div", { class: "box", "data-object": index }, make("span", {}, `${found.label} ${percent(found.score)}`));
  box.style.left = `${x1 * 100}%`;
  box.style.top = `${y1 * 100}%`;
  box.style.width = `${(x2 - x1) * 100}%`;
  box.style.height = `${(y2 - y1) * 100}%`;
  box.style.setProperty("--colour", colour(found.label));
  box.style.zIndex = String(1000 - index);
  if (y1 < 0.06) box.classList.add("at-top");
  if (x1 > 0.75) box.classList.add("at-right");
  box.onpointerenter = () => light(index, true);
  box.onpointerleave = () => light(index, false);
  return box;
}

/** Mark an object in the picture and in the list, or no longer. */
export function light(index, on) {
  for (const element of document.querySelectorAll(`[data-object="${index}"]`)) element.classList.toggle("lit", on);
  find("frame").classList.toggle("dim", on);
}

/** Show what scores at least `least` (0-1), and say how many that are. */
export function filter(result, least) {
  const objects = objectsOf(result);
  objects.forEach((found, index) => {
    for (const element of document.querySelectorAll(`[data-object="${index}"]`)) show(element, found.score >= least);
  });
  const shown = objects.filter((found) => found.score >= least).length;
  find("shown").textContent = objects.length ? `${shown} of ${objects.length}` : "none";
}

function blobOf(base64) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  return new Blob([bytes], { type: "image/jpeg" });
}
