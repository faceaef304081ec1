// The service, as any client sees it. The key is in this module's memory and nowhere else.

let key = "";

export function useKey(given) {
  key = given;
}

export const hasKey = () => key !== "";

/** The service said no, in words that are meant to be read. */
export class Refusal extends Error {
  constructor(status, error) {
    super(error.message);
    Object.assign(this, { status, code: error.code, requestId: error.request_id });
  }
}

/** Nobody answers. */
export class Gone extends Error {
  constructor() {
    super("The service does not answer. As soon as it does, this goes on by itself.");
  }
}

const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));

async function call(path, body) {
  let answer;
  let read;
  try {
    answer = await fetch(path, { method: body ? "POST" : "GET", body, headers: key ? { Authorization: `Bearer ${key}` } : {} });
    read = await answer.json();
  } catch {
    throw new Gone();
  }
  if (answer.ok) return read;
  const error = read.error || { code: "unknown", message: `The answer has the status ${answer.status}.` };
  const refusal = new Refusal(answer.status, error);
  refusal.wait = error.retryable ? Number(answer.headers.get("Retry-After") || 1) : null;
  throw refusal;
}

/** Post pictures with options, each a value or a list; wait and try again while the service is busy. */
export async function post(path, files, options) {
  for (let tries = 1; ; tries += 1) {
    const form = new FormData();
    for (const file of files) form.append("images", file);
    for (const [name, value] of Object.entries(options)) for (const one of [value].flat()) form.append(name, one);
    try {
      return await call(path, form);
    } catch (error) {
      if (!(error instanceof Refusal) || error.wait === null || tries === 6) throw error;
      await pause(Math.min(error.wait, 15) + Math.random());
    }
  }
}

/** What is served: models, how many pictures a request takes, whether profiles are answered. */
export async function describe() {
  const spec = await call("docs.json");
  const form = spec.paths["/analyze"].post.requestBody.content["multipart/form-data"].schema;
  return {
    version: spec.info.version,
    mostImages: form.properties.images.maxItems,
    insights: Boolean(spec.paths["/insights"]),
    models: await models(),
  };
}

/** The models' cards; null where a key is needed first. */
export async function models() {
  try {
    return (await call("models")).models;
  } catch (error) {
    if (error instanceof Refusal && [401, 403].includes(error.status)) return null;
    throw error;
  }
}

/** "ready", "starting" or "gone". */
export async function state() {
  try {
    return (await call("readyz")).ready ? "ready" : "starting";
  } catch (error) {
    return error instanceof Refusal ? "starting" : "gone";
  }
}
