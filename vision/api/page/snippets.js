// The request that was made, as others would write it.

const PLAIN = /^[\w.+-]+$/;
const SAFE = /^[\w.+:/=@-]+$/;

const shell = (text) => (SAFE.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

/** A file's name in curl's -F, where ; and , mean something. */
const curlFile = (name) => (PLAIN.test(name) ? `images=@${name}` : `images=@"${name.replaceAll("\\", "\\\\").replaceAll('"', '\\"')}"`);

const pairs = (options) => Object.entries(options).flatMap(([name, value]) => [value].flat().map((one) => [name, one]));

function curl({ url, name, options, key }) {
  const lines = [`curl ${shell(url)}`, `-F ${shell(curlFile(name))}`];
  lines.push(...pairs(options).map(([option, value]) => `-F ${shell(`${option}=${value}`)}`));
  if (key) lines.push('-H "Authorization: Bearer $VISION_KEY"');
  return lines.join(" \\\n  ");
}

function python({ url, name, options, key }) {
  const headers = key ? `\n        headers={"Authorization": "Bearer " + os.environ["VISION_KEY"]},` : "";
  const data = pairs(options).length ? `\n        data=${JSON.stringify(options)},` : "";
  return `${key ? "import os\n\n" : ""}import httpx

with open(${JSON.stringify(name)}, "rb") as photo:
    answer = httpx.post(
        ${JSON.stringify(url)},
        files={"images": photo},${data}${headers}
    )
answer.raise_for_status()
print(answer.json()["results"][0])`;
}

function javascript({ url, name, options, key }) {
  const appended = pairs(options).map(([option, value]) => `form.append(${JSON.stringify(option)}, ${JSON.stringify(String(value))});\n`);
  const headers = key ? ", headers: { Authorization: `Bearer ${process.env.VISION_KEY}` }" : "";
  return `import { openAsBlob } from "node:fs";  // in a browser, a File of an <input>

const form = new FormData();
form.append("images", await openAsBlob(${JSON.stringify(name)}));
${appended.join("")}const answer = await fetch(${JSON.stringify(url)}, { method: "POST", body: form${headers} });
if (!answer.ok) throw new Error((await answer.json()).error.message);
console.log((await answer.json()).results[0]);`;
}

/** The answer as it came; a drawn picture in it would fill the screen. */
const json = ({ answer }) => JSON.stringify(answer, (name, value) => (name === "rendered" ? `${value.length} characters of base64` : value), 2);

export const SNIPPETS = { JSON: json, curl, Python: python, JavaScript: javascript };
