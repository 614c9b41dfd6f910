// Runs a script's cases, all at once, and prints what each came to, by its name: one JSON object.
//
// A name is `client/provider/what`. What a case throws is told too, as a caller of the SDK sees it.

export const settings = JSON.parse(process.argv[2]);

const cases = {};

/** Have a case run. */
export function given(name, run) {
  cases[name] = run;
}

/** The system prompt of a case, with the name, by which a scripted provider knows what to say. */
export function system(name) {
  return `${settings.system} (${name})`;
}

/** What a call of a tool comes to. */
export function result(tool, input) {
  return settings.results[tool + JSON.stringify(input)];
}

/** Have a client refused. `ask` and `stream` make a request; without `retries` as the SDK does. */
export function refusals(client, { ask, stream }) {
  const { keys, models } = settings;
  const good = { key: keys.good, model: models.chat, most: 1000 };
  const refused = {
    "wrong key": () => ask({ ...good, key: "sk-wrong" }),
    "wrong key, streamed": () => stream({ ...good, key: "sk-wrong" }),
    "unknown model": () => ask({ ...good, model: "nope" }),
    "a limit": async () => {
      const slow = { ...good, key: keys[`${client}-slow`], retries: 0 };
      await ask(slow);
      await ask(slow);
    },
    "what never fits": () => ask({ ...good, key: keys[`${client}-small`], most: 5000 }),
    "a provider's limit": () => ask({ ...good, model: `limited/${client}` }),
    "a cut stream": () => stream({ ...good, model: `cut/${client}`, retries: 0 }),
  };
  for (const [what, run] of Object.entries(refused)) given(`${client}/refused/${what}`, run);
  given(`${client}/waits/and succeeds`, async () => {
    const brisk = { ...good, key: keys[`${client}-brisk`] };
    await Promise.all([ask(brisk), ask(brisk)]);
  });
}

function thrown(error) {
  const { status, statusCode, code, message, isRetryable } = error;
  const found = {
    class: error.constructor.name,
    status: status ?? statusCode,
    code,
    message,
    isRetryable,
  };
  const headers = error.headers ?? error.responseHeaders;
  if (headers) found.headers = headers.entries ? Object.fromEntries(headers) : headers;
  if (error.lastError) found.last = thrown(error.lastError);
  return found;
}

export async function run() {
  const found = {};
  await Promise.all(
    Object.entries(cases).map(async ([name, one]) => {
      try {
        found[name] = (await one()) ?? null;
      } catch (error) {
        found[name] = { thrown: thrown(error) };
      }
    }),
  );
  process.stdout.write(JSON.stringify(found));
}
