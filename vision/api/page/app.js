// What the page holds and does: pictures come in, each is asked about in its turn, one of them is looked at.
import { find, fill, make, percent, show } from "./dom.js";
import { askForTips, forgetTips, showProfile } from "./profile.js";
import { showResult } from "./results.js";
import * as service from "./service.js";
import { SNIPPETS } from "./snippets.js";
import { captionOf, filter, objectsOf, showPicture } from "./stage.js";

const AT_ONCE = 3; // requests in work: a page should not be all that the service has to do
const PICTURE_NAME = /\.(jpe?g|png|webp|gif|bmp|avif|heic|heif)$/i;

const photos = []; // { id, file, name, state: waiting | asking | done | failed, result, error, unshowable, tile }
let selected = null;
let facts = null;
let inWork = 0;
let ids = 0;
let gone = false; // nobody answers: what waits goes on waiting
let language = "JSON";

// --- in ---

function add(files) {
  const [pictures, others] = [[], []];
  for (const file of files) (file.type.startsWith("image/") || PICTURE_NAME.test(file.name) ? pictures : others).push(file);
  tell(others.length ? `${names(others)}: no picture; JPEG, PNG, WebP, GIF, BMP, AVIF and HEIC are.` : "");
  if (!pictures.length) return;
  const added = pictures.map((file) => ({ id: (ids += 1), file, name: file.name || "pasted.png", state: "waiting" }));
  for (const photo of added) {
    photo.tile = tileOf(photo);
    photos.push(photo);
  }
  find("tiles").append(...added.map((photo) => photo.tile));
  document.body.classList.remove("empty");
  for (const id of ["clear", "work", "developers"]) show(find(id), true);
  show(find("strip"), photos.length > 1);
  goOn();
  select(added[0]);
}

const names = (files) => files.slice(0, 3).map((file) => file.name).join(", ") + (files.length > 3 ? ` and ${files.length - 3} more` : "");

function tell(text) {
  find("notice").textContent = text;
  show(find("notice"), Boolean(text));
}

async function addExamples(list) {
  try {
    add(await Promise.all(list.split(" ").map(async (name) => {
      const answer = await fetch(`examples/${name}`);
      return new File([await answer.blob()], name, { type: "image/jpeg" });
    })));
  } catch {
    lose();
  }
}

function clear() {
  photos.length = 0;
  selected = null;
  forgetTips();
  find("tiles").replaceChildren();
  document.body.classList.add("empty");
  for (const id of ["clear", "work", "developers", "strip", "profile"]) show(find(id), false);
  tell("");
  find("pick").focus();
}

// --- asking ---

function goOn() {
  if (gone) {
    const untold = photos.filter((photo) => photo.state === "waiting" && !photo.error);
    for (const photo of untold) photo.error = new service.Gone();
    if (untold.includes(selected)) look();
    return;
  }
  for (const photo of photos) {
    if (inWork >= AT_ONCE) break;
    if (photo.state === "waiting") work(photo);
  }
  progress();
}

async function work(photo) {
  photo.state = "asking";
  inWork += 1;
  mark(photo);
  try {
    await thumbnail(photo);
    const options = chosenOptions(photo);
    const answer = await service.post("analyze", [photo.file], options);
    [photo.result] = answer.results;
    Object.assign(photo, { state: "done", error: null, answer, options });
  } catch (error) {
    photo.state = error instanceof service.Gone ? "waiting" : "failed";
    Object.assign(photo, { error, result: null, answer: null });
    if (error instanceof service.Gone) lose();
    if (error.status === 401 || error.status === 403) askForKey();
  }
  inWork -= 1;
  if (!photos.includes(photo)) return;
  mark(photo);
  if (photo === selected) look();
  goOn();
  if (photos.every((one) => one.state === "done" || one.state === "failed")) finish();
}

function chosenOptions(photo) {
  const chosen = [...document.querySelectorAll("#model-list select")];
  const features = chosen.filter((select) => select.value).map((select) => select.value);
  const isDefault = chosen.every((select) => select.selectedIndex === 0);
  return {
    ...(isDefault || !features.length ? {} : { features }),
    ...(photo.unshowable ? { render: true } : {}),
  };
}

async function finish() {
  showTogether();
  if (!facts || !facts.insights || gone) return;
  await askForTips(service, photos, facts.mostImages);
  showTogether();
}

function askAgain() {
  forgetTips();
  for (const photo of photos) if (photo.state !== "asking") photo.state = "waiting";
  goOn();
}

/** Draw a small copy for the row of pictures, once; whole ones of 200 photographs would fill the memory. */
function thumbnail(photo) {
  photo.drawn ||= drawThumbnail(photo);
  return photo.drawn;
}

async function drawThumbnail(photo) {
  const canvas = photo.tile.querySelector("canvas");
  try {
    const whole = await createImageBitmap(photo.file, { resizeHeight: 144, resizeQuality: "medium" });
    canvas.width = Math.min(whole.width, 288);
    canvas.height = whole.height;
    canvas.getContext("2d").drawImage(whole, (canvas.width - whole.width) / 2, 0);
    whole.close();
  } catch {
    photo.unshowable = true;
  }
}

// --- the service ---

function lose() {
  if (gone) return;
  gone = true;
  say("gone");
  goOn();
  const timer = setInterval(async () => {
    const state = await service.state();
    say(state);
    if (state !== "ready") return;
    clearInterval(timer);
    gone = false;
    if (!facts) await connect();
    goOn();
  }, 2000);
}

function say(state) {
  const words = { ready: "ready", starting: "starting, a moment please", gone: "the service does not answer" };
  find("state").textContent = words[state];
  find("state").dataset.state = state;
}

async function connect() {
  try {
    const state = await service.state();
    if (state !== "ready") {
      lose();
      say(state);
    } else say(state);
    facts = await service.describe();
    showModels();
  } catch {
    lose();
  }
}

function askForKey() {
  show(find("key-form"), true);
}

async function takeKey(event) {
  event.preventDefault();
  service.useKey(find("key").value.trim());
  find("key").value = "";
  const models = await service.models().catch(() => null);
  show(find("key-form"), !models);
  tell(models ? "" : "The service does not know this key.");
  if (!models) return;
  facts.models = models;
  showModels();
  askAgain();
}

function showModels() {
  if (!facts.models) {
    askForKey();
    return;
  }
  const tasks = Map.groupBy ? Map.groupBy(facts.models, (card) => card.task) : grouped(facts.models);
  fill(find("model-list"), ...[...tasks].map(([task, cards]) => {
    const options = cards.map((card, index) => make("option", { value: index ? `${task}:${card.name}` : task }, `${card.name}`));
    const about = make("p", { class: "muted" }, cards[0].description);
    const chosen = make("select", { id: `model-${task}`, onchange: (event) => {
      about.textContent = (cards[event.target.selectedIndex] || { description: "not asked" }).description;
      askAgain();
    } }, ...options, make("option", { value: "" }, "not asked"));
    return make("div", {}, make("label", { for: `model-${task}` }, task), chosen, about);
  }));
}

function grouped(cards) {
  const tasks = new Map();
  for (const card of cards) tasks.set(card.task, [...(tasks.get(card.task) || []), card]);
  return tasks;
}

// --- out ---

function tileOf(photo) {
  const button = make("button", { type: "button", onclick: () => select(photo) }, make("canvas", { width: 96, height: 72 }));
  return make("li", {}, button);
}

function mark(photo) {
  const button = photo.tile.firstChild;
  const words = { waiting: "waiting", asking: "being looked at", done: captionOf(photo.result), failed: "failed" };
  button.dataset.state = photo.state;
  button.setAttribute("aria-label", `${photo.name}, ${words[photo.state]}`);
  button.title = photo.name;
  if (photo === selected) button.setAttribute("aria-current", "true");
  else button.removeAttribute("aria-current");
}

function select(photo) {
  const before = selected;
  selected = photo;
  for (const one of [before, photo]) if (one && photos.includes(one)) mark(one);
  look();
}

async function look() {
  const photo = selected;
  await thumbnail(photo);
  if (photo !== selected) return;
  showPicture(selected);
  showResult(selected);
  threshold();
  showCode();
  if (!selected.result) return;
  const found = objectsOf(selected.result).filter((one) => one.score >= least()).map((one) => one.label);
  find("said").textContent = `${selected.name}: ${captionOf(selected.result)}. ${found.length} objects: ${found.join(", ")}`;
}

const least = () => Number(find("threshold").value) / 100;

function threshold() {
  find("threshold-said").textContent = percent(least());
  if (selected) filter(selected.result, least());
  showTogether();
}

function showTogether() {
  showProfile(photos, least(), select);
}

function progress() {
  const done = photos.filter((photo) => photo.state === "done" || photo.state === "failed").length;
  const failed = photos.filter((photo) => photo.state === "failed").length;
  const all = done === photos.length ? `${done} pictures` : `${done} of ${photos.length} pictures`;
  find("progress").textContent = failed ? `${all}, ${failed} failed` : all;
}

function request() {
  return {
    url: new URL("analyze", location.href).href,
    name: selected.name,
    options: selected.options || chosenOptions(selected),
    key: service.hasKey(),
    answer: selected.answer || (selected.error && selected.error.code
      ? { error: { code: selected.error.code, message: selected.error.message } } : "not answered yet"),
  };
}

function showCode() {
  if (selected) find("code").firstChild.textContent = SNIPPETS[language](request());
}

function tab(name) {
  return make("button", { type: "button", role: "tab", id: `tab-${name}`, "aria-controls": "code",
    onclick: () => openTab(name), onkeydown: (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const all = Object.keys(SNIPPETS);
      openTab(all[(all.indexOf(name) + step + all.length) % all.length]);
      find(`tab-${language}`).focus();
    } }, name);
}

function openTab(name) {
  language = name;
  for (const one of find("tabs").children) {
    const open = one.id === `tab-${name}`;
    one.setAttribute("aria-selected", String(open));
    one.tabIndex = open ? 0 : -1;
  }
  find("code").setAttribute("aria-labelledby", `tab-${name}`);
  showCode();
}

async function copy() {
  const text = find("code").textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    getSelection().selectAllChildren(find("code")); // no clipboard over plain HTTP from afar
    document.execCommand("copy");
  }
  find("copy").textContent = "Copied";
  setTimeout(() => (find("copy").textContent = "Copy"), 1500);
}

// --- wires ---

for (const id of ["pick", "take"]) {
  find(id).onchange = (event) => {
    add(event.target.files);
    event.target.value = "";
  };
}
for (const button of document.querySelectorAll("[data-examples]")) button.onclick = () => addExamples(button.dataset.examples);
find("clear").onclick = clear;
find("threshold").oninput = threshold;
find("copy").onclick = copy;
find("key-form").onsubmit = takeKey;
find("tabs").append(...Object.keys(SNIPPETS).map(tab));
openTab(language);

addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) add(event.clipboardData.files);
});
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dragging");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  if (event.dataTransfer.files.length) add(event.dataTransfer.files);
  else tell("Drop the file itself: addresses are never fetched.");
});

connect();
