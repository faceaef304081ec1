// Several pictures as one profile: what is seen in how many of them, and tips where the service gives any.
import { colour } from "./colours.js";
import { find, make, percent, show } from "./dom.js";
import { objectsOf } from "./stage.js";

let asked = "";
let told = null;

/** Draw what is known, without asking; `least` is the threshold of objects (0-1). */
export function showProfile(photos, least, select) {
  const answered = photos.filter((photo) => photo.result);
  show(find("profile"), answered.length > 1);
  if (answered.length < 2) return;
  const rows = sharesOf(answered, least).slice(0, 12).map(([label, seen]) => shareOf(label, seen, answered.length));
  find("profile-body").replaceChildren(
    ...tipsOf(photos, select),
    make("h3", {}, "Seen in how many pictures"),
    rows.length ? make("ul", { class: "bars shares" }, ...rows) : make("p", { class: "muted" }, "No object scores high enough."),
  );
}

function sharesOf(photos, least) {
  const seen = new Map();
  for (const photo of photos) {
    const labels = new Set(objectsOf(photo.result).filter((found) => found.score >= least).map((found) => found.label));
    for (const label of labels) seen.set(label, (seen.get(label) || 0) + 1);
  }
  return [...seen].sort((one, other) => other[1] - one[1]);
}

function shareOf(label, seen, all) {
  const bar = make("span", { class: "bar" });
  bar.style.width = `${(seen / all) * 100}%`;
  bar.style.background = colour(label);
  return make("li", {}, make("span", { class: "label" }, label), make("span", { class: "score" }, `${seen} of ${all}`),
    make("span", { class: "track", "aria-hidden": "true" }, bar));
}

function tipsOf(photos, select) {
  if (!told) return [];
  if (told.error) return [make("p", { class: "failure" }, `No tips: ${told.error.message}`)];
  const { tips = [], near_duplicates: same = [] } = told.insights;
  const lines = tips.map((tip) => make("li", { class: `tip ${tip.severity}` },
    make("strong", {}, tip.severity), ` ${tip.text} `, ...links(tip.pictures || [], told.photos, select)));
  const untold = same.filter((group) => !tips.some((tip) => group.every((index) => (tip.pictures || []).includes(index))));
  for (const group of untold) lines.push(make("li", { class: "tip" }, "These look the same: ", ...links(group, told.photos, select)));
  const part = told.photos.length < photos.length ? ` of the first ${told.photos.length} pictures` : "";
  if (!lines.length) return [make("p", {}, `No tip${part}: nothing here is what the rules speak of.`)];
  return [make("h3", {}, `Tips${part}`), make("ul", { class: "tips" }, ...lines)];
}

function links(indices, photos, select) {
  return indices.filter((index) => photos[index]).map((index) =>
    make("button", { type: "button", class: "link", onclick: () => select(photos[index]) }, `${index + 1}. ${photos[index].name}`));
}

/** Ask for the tips of all pictures that were answered, once for the same pictures. */
export async function askForTips(service, photos, most) {
  const chosen = photos.filter((photo) => photo.result).slice(0, most);
  const name = chosen.map((photo) => photo.id).join();
  if (chosen.length < 2 || name === asked) return;
  asked = name;
  try {
    const answer = await service.post("insights", chosen.map((photo) => photo.file), {});
    told = { insights: answer.insights || answer, photos: chosen };
  } catch (error) {
    told = { error };
  }
}

export function forgetTips() {
  asked = "";
  told = null;
}
