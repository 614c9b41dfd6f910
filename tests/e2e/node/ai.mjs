// Vercel's AI SDK by its providers: OpenAI's (Responses and chat), Anthropic's, the compatible one.

import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import {
  embedMany,
  generateObject,
  generateText,
  jsonSchema,
  stepCountIs,
  streamText,
  tool,
} from "ai";
import { given, refusals, result, run, settings, system } from "./cases.mjs";

globalThis.AI_SDK_LOG_WARNINGS = false;

const { url, keys, models, question } = settings;
const baseURL = `${url}/v1`;
const schema = jsonSchema(settings.schema);
const tools = Object.fromEntries(
  settings.tools.map((name) => {
    const execute = (input) => result(name, input);
    return [name, tool({ inputSchema: jsonSchema({ type: "object" }), execute })];
  }),
);

// By the name `google` it sends the signatures of Gemini's calls back; by any other it loses them.
const compatible = { name: "google", baseURL, includeUsage: true, supportsStructuredOutputs: true };
const clients = {
  "ai-responses": (apiKey) => createOpenAI({ baseURL, apiKey }),
  "ai-chat": (apiKey) => createOpenAI({ baseURL, apiKey }).chat,
  "ai-anthropic": (apiKey) => createAnthropic({ baseURL, apiKey }),
  "ai-compatible": (apiKey) => createOpenAICompatible({ ...compatible, apiKey }),
};
const openai = { forceReasoning: true, reasoningEffort: "high", reasoningSummary: "auto" };
const thinking = {
  // Else it names earlier items by their ids, for a provider that keeps them.
  "ai-responses": { openai: { ...openai, store: false } },
  "ai-chat": { openai: { reasoningEffort: "high" } },
  "ai-anthropic": { anthropic: { thinking: { type: "enabled", budgetTokens: 2000 } } },
  "ai-compatible": { google: { reasoningEffort: "high" } },
};

async function generated(ask, stream) {
  if (!stream) return generateText({ maxRetries: 0, ...ask });
  let failure;
  const streamed = streamText({ maxRetries: 0, onError: ({ error }) => (failure = error), ...ask });
  await streamed.consumeStream();
  if (failure) throw failure;
  const names = [
    "text",
    "reasoningText",
    "totalUsage",
    "finishReason",
    "response",
    "steps",
    "responseMessages",
  ];
  return Object.fromEntries(
    await Promise.all(names.map(async (name) => [name, await streamed[name]])),
  );
}

async function text(ask, stream) {
  const {
    text,
    reasoningText: thought,
    totalUsage: usage,
    finishReason: finish,
  } = await generated(ask, stream);
  return { text, thought, usage, finish };
}

/** Two turns at one go; all others go on from the history that the SDK hands out. */
async function turns(ask, stream) {
  const begun = await generated({ ...ask, tools, stopWhen: stepCountIs(2) }, stream);
  const said = begun.responseMessages ?? begun.response.messages; // from version 7 on; before it
  const messages = [...ask.messages, ...said];
  const ended = await generated({ ...ask, tools, messages, stopWhen: stepCountIs(9) }, stream);
  return [...begun.steps, ...ended.steps].map((step) => step.text);
}

const messages = [{ role: "user", content: question }];
for (const [client, made] of Object.entries(clients)) {
  for (const [provider, id] of Object.entries(models)) {
    const ask = (name) => ({ model: made(keys.good)(id), system: system(name), messages });
    for (const mode of ["whole", "streamed"]) {
      const plain = `${client}/${provider}/text ${mode}`;
      given(plain, () => text(ask(plain), mode === "streamed"));
      const long = `${client}/${provider}/turns ${mode}`;
      given(long, () =>
        turns({ ...ask(long), providerOptions: thinking[client] }, mode === "streamed"),
      );
    }
    const name = `${client}/${provider}/object`;
    given(name, async () => (await generateObject({ ...ask(name), schema, maxRetries: 0 })).object);
  }
  const asked = ({ key, model, most, retries }) => {
    return { model: made(key)(model), messages, maxOutputTokens: most, maxRetries: retries };
  };
  refusals(client, {
    ask: async (options) => void (await generateText(asked(options))),
    stream: async (options) => void (await generated(asked(options), true)),
  });
}

for (const [provider, id] of Object.entries(settings.embeddings)) {
  for (const client of ["ai-responses", "ai-compatible"]) {
    given(`${client}/${provider}/embeddings`, async () => {
      const model = clients[client](keys.good).textEmbeddingModel(id);
      const { embeddings, usage } = await embedMany({
        model,
        values: ["one", "two"],
        maxRetries: 0,
      });
      return { vectors: embeddings, tokens: usage.tokens };
    });
  }
}

await run();
