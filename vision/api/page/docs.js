// The OpenAPI document, drawn.
import { find, make } from "./dom.js";

/** Text in which `this` is code. */
const words = (text) => String(text).split("`").map((part, index) => (index % 2 ? make("code", {}, part) : part));

function table(heads, rows) {
  const line = (tag, cells) => make("tr", {}, ...cells.map((cell) => make(tag, {}, ...words(cell))));
  return make("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": heads.filter(Boolean).join(", ") },
    make("table", {}, make("thead", {}, line("th", heads)), make("tbody", {}, ...rows.map((cells) => line("td", cells)))));
}

function kind(schema) {
  if (schema.enum) return schema.enum.join(" | ");
  if (schema.anyOf) return schema.anyOf.map(kind).filter((name) => name !== "null").join(" | ");
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.type === "array") return `list of ${kind(schema.items || {})}`;
  const bounds = [schema.minimum, schema.maximum].filter((bound) => bound !== undefined).join("–");
  return [schema.type, bounds].filter(Boolean).join(" ");
}

/** The schema of a picture's result, or of the whole answer. */
function resultOf(operation, schemas) {
  const { schema } = operation.responses["200"].content["application/json"];
  const results = schema.properties && schema.properties.results;
  return schemas[kind(results && results.items.anyOf ? results.items.anyOf[0] : schema)] || schema;
}

function endpoint(path, operation, schemas) {
  const section = make("section", { class: "card endpoint" }, make("h2", {}, `POST ${path}`), make("p", {}, ...words(operation.summary || "")));
  const form = operation.requestBody.content["multipart/form-data"].schema;
  const options = Object.entries(form.properties).map(([name, schema]) => [
    name, kind(schema), schema.default === undefined || schema.default === null ? "" : JSON.stringify(schema.default), schema.description || "",
  ]);
  section.append(make("h3", {}, "Options"), table(["name", "type", "default", "meaning"], options));
  const fields = Object.entries(resultOf(operation, schemas).properties || {}).map(([name, schema]) => [
    name, kind(schema), schema.description || "",
  ]);
  section.append(make("h3", {}, "Result"), table(["name", "type", "meaning"], fields));
  const errors = Object.entries(operation.responses).filter(([status]) => status >= "400");
  section.append(make("h3", {}, "Errors"), table(["status", "meaning"], errors.map(([status, answer]) => [status, answer.description])));
  section.append(make("pre", { tabindex: "0" }, `curl -F images=@photo.jpg ${new URL(path.slice(1), location.href)}`));
  return section;
}

const read = async (path) => (await fetch(path)).json();

const spec = await read("docs.json");
find("version").textContent = `version ${spec.info.version}`;
find("endpoints").append(...Object.entries(spec.paths).filter(([, item]) => item.post)
  .map(([path, item]) => endpoint(path, item.post, spec.components.schemas)));
const { models, error } = await read("models");
find("models").append(...(models || []).map((card) => make("li", {}, make("strong", {}, card.name), ` ${card.version}`,
  make("p", { class: "muted" }, `${card.task}; ${card.licence}`), make("p", {}, card.description))));
if (error) find("models").append(make("li", {}, error.message));
