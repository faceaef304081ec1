// Draws docs.json. What comes from the service is only ever set as text.
"use strict";

function make(tag, text, ...children) {
  const element = document.createElement(tag);
  if (text !== null) element.textContent = text;
  element.append(...children);
  return element;
}

function table(heads, rows) {
  const head = make("tr", null, ...heads.map((text) => make("th", text)));
  return make("table", null, head, ...rows.map((cells) => make("tr", null, ...cells.map((cell) => make("td", cell)))));
}

function kind(schema) {
  if (schema.enum) return schema.enum.join(" | ");
  if (schema.anyOf) return schema.anyOf.map(kind).filter((name) => name !== "null").join(" | ");
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.type === "array") return `list of ${kind(schema.items)}`;
  const bounds = [schema.minimum, schema.maximum].filter((bound) => bound !== undefined).join("–");
  return [schema.type, bounds].filter(Boolean).join(" ");
}

function endpoint(path, operation, schemas) {
  const section = make("section", null, make("h2", `POST ${path}`), make("p", operation.summary || ""));
  const form = operation.requestBody.content["multipart/form-data"].schema;
  const options = Object.entries(form.properties).map(([name, schema]) => [
    name, kind(schema), schema.default == null ? "" : JSON.stringify(schema.default), schema.description || "",
  ]);
  section.append(make("h3", "Options"), table(["name", "type", "default", ""], options));
  const [result] = operation.responses["200"].content["application/json"].schema.properties.results.items.anyOf;
  const fields = Object.entries(schemas[kind(result)].properties).map(([name, schema]) => [
    name, kind(schema), schema.description || "",
  ]);
  section.append(make("h3", "Result of a picture"), table(["name", "type", ""], fields));
  const errors = Object.entries(operation.responses).filter(([status]) => status >= "400");
  section.append(make("h3", "Errors"), table(["status", ""], errors.map(([status, answer]) => [status, answer.description])));
  section.append(make("pre", `curl -F images=@photo.jpg ${new URL(path.slice(1), location.href)}`));
  return section;
}

async function read(path) {
  const answer = await fetch(path);
  return answer.json();
}

async function draw() {
  const spec = await read("docs.json");
  const endpoints = Object.entries(spec.paths).filter(([, item]) => item.post);
  for (const [path, item] of endpoints) {
    document.getElementById("endpoints").append(endpoint(path, item.post, spec.components.schemas));
    document.querySelector("select").append(make("option", path));
  }
  document.getElementById("version").textContent = `version ${(await read("version")).version}`;
  document.getElementById("state").textContent = (await read("readyz")).ready ? "ready" : "not ready";
  const { models, error } = await read("models");
  const lines = models ? models.map((card) => `${card.task}: ${card.name}:${card.version} – ${card.description}`) : [error.message];
  document.getElementById("models").append(...lines.map((line) => make("li", line)));
}

document.getElementById("try").addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = new FormData(event.target);
  const [path, key] = [form.get("endpoint"), form.get("key")];
  form.delete("endpoint");
  form.delete("key");
  const shown = document.getElementById("answer");
  shown.hidden = false;
  shown.textContent = "…";
  try {
    const headers = key ? { Authorization: `Bearer ${key}` } : {};
    const answer = await fetch(path.slice(1), { method: "POST", body: form, headers });
    shown.textContent = JSON.stringify(await answer.json(), null, 2);
  } catch (error) {
    shown.textContent = String(error);
  }
});

draw();
