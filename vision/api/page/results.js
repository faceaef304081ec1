// What is seen in a picture, as words and bars.
import { colour } from "./colours.js";
import { fill, find, make, percent, show } from "./dom.js";
import { light, objectsOf } from "./stage.js";

export function showResult(photo) {
  const parts = Object.values(photo.result || {}).filter((part) => part && typeof part === "object");
  const [captions, classes] = [parts.filter((part) => "caption" in part), parts.filter((part) => "labels" in part)];
  showFailure(photo, parts.filter((part) => part.error));
  show(find("caption"), captions.length > 0);
  fill(find("caption"), ...captions.map((part) => make("p", { class: "sentence" }, part.caption)));
  show(find("classes"), classes.length > 0);
  fill(find("classes"), ...classes.flatMap(barsOf));
  show(find("objects"), parts.some((part) => "objects" in part));
  find("object-list").replaceChildren(...objectsOf(photo.result).map(rowOf));
  showOthers(photo.result || {});
  find("results").classList.toggle("busy", !photo.result && !photo.error);
  find("timing").textContent = photo.result ? timing(photo.result, parts) : "";
}

function barsOf(part) {
  if (!part.labels.length) return [make("p", { class: "muted" }, "No class scores high enough.")];
  return [make("ul", { class: "bars" }, ...part.labels.map(({ label, score }) => {
    const bar = make("span", { class: "bar" });
    bar.style.width = `${Math.max(score * 100, 0.5)}%`;
    const [first, ...others] = label.split(", ");
    return make("li", { title: label },
      make("span", { class: "label" }, first, others.length ? make("small", { class: "muted" }, ` ${others.join(", ")}`) : null),
      make("span", { class: "score" }, percent(score)), make("span", { class: "track", "aria-hidden": "true" }, bar));
  }))];
}

function rowOf(found, index) {
  const swatch = make("span", { class: "swatch", "aria-hidden": "true" });
  swatch.style.background = colour(found.label);
  const [x1, y1, x2, y2] = found.box.map(Math.round);
  const on = () => light(index, true);
  const off = () => light(index, false);
  const row = make("button", { type: "button", onpointerenter: on, onpointerleave: off, onfocus: on, onblur: off,
    title: `from ${x1}, ${y1} to ${x2}, ${y2} pixels` },
    swatch, make("span", { class: "label" }, found.label), make("span", { class: "score" }, percent(found.score)));
  return make("li", { "data-object": index }, row);
}

const KNOWN = ["caption", "labels", "objects", "error"];

/** What tasks say that this page does not know, as they say it. */
function showOthers(result) {
  const others = Object.entries(result).filter(([, part]) => part && part.model && !KNOWN.some((name) => name in part));
  show(find("others"), others.length > 0);
  find("others").replaceChildren(...others.flatMap(([word, { model, ...said }]) => [
    make("h2", {}, word), make("pre", { tabindex: "0" }, JSON.stringify(said, null, 2)),
  ]));
}

function timing(result, parts) {
  const models = parts.filter((part) => part.model).map((part) => part.model.name);
  return `${result.size.width} × ${result.size.height} pixels, answered in ${Math.round(result.ms.total)} ms by ${models.join(", ")}`;
}

function showFailure(photo, failedParts) {
  const errors = [photo.error, ...failedParts.map((part) => part.error)].filter(Boolean);
  show(find("failure"), errors.length > 0);
  find("failure").replaceChildren(...errors.map((error) => {
    const named = [error.code, error.requestId || error.request_id].filter(Boolean).join(", request ");
    return make("div", {}, make("p", {}, error.message), named ? make("p", { class: "muted" }, named) : null);
  }));
}
