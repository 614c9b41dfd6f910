// Anthropic's own SDK: Messages.

import Anthropic from "@anthropic-ai/sdk";
import { given, refusals, result, run, settings, system } from "./cases.mjs";

const { url, keys, models, question, schema } = settings;
const client = (options) => new Anthropic({ baseURL: url, apiKey: keys.good, ...options });
const usual = client({ maxRetries: 0 });

const tools = settings.tools.map((name) => ({ name, input_schema: { type: "object" } }));

const blocks = ({ content }, type) => content.filter((block) => block.type === type);
const text = (message) =>
  blocks(message, "text")
    .map((block) => block.text)
    .join("");

async function said(ask, stream) {
  return stream
    ? usual.messages.stream(ask).finalMessage()
    : usual.messages.create(ask, { timeout: 30000 });
}

async function whole(ask, stream) {
  const message = await said(ask, stream);
  const [thinking] = blocks(message, "thinking");
  return {
    text: text(message),
    thought: thinking?.thinking,
    usage: message.usage,
    finish: message.stop_reason,
  };
}

async function turns(ask, stream) {
  const messages = [...ask.messages];
  const options = { thinking: { type: "enabled", budget_tokens: 2000 }, max_tokens: 20000 };
  const texts = [];
  for (;;) {
    const message = await said({ ...ask, ...options, messages, tools }, stream);
    texts.push(text(message));
    messages.push({ role: "assistant", content: message.content });
    const calls = blocks(message, "tool_use");
    if (!calls.length) return texts;
    const content = calls.map(({ id, name, input }) => {
      return {
        type: "tool_result",
        tool_use_id: id,
        content: [{ type: "text", text: result(name, input) }],
      };
    });
    messages.push({ role: "user", content });
  }
}

const messages = [{ role: "user", content: question }];
for (const [provider, model] of Object.entries(models)) {
  const ask = (name) => ({ model, messages, system: system(name), max_tokens: 1000 });
  for (const mode of ["whole", "streamed"]) {
    for (const [name, one] of [
      [`anthropic/${provider}/text ${mode}`, whole],
      [`anthropic/${provider}/turns ${mode}`, turns],
    ]) {
      given(name, () => one(ask(name), mode === "streamed"));
    }
  }
  const name = `anthropic/${provider}/object`;
  given(name, async () => {
    const output_config = { format: { type: "json_schema", schema } };
    return (await usual.messages.parse({ ...ask(name), output_config })).parsed_output;
  });
  given(
    `anthropic/${provider}/count`,
    async () => (await usual.messages.countTokens({ model, messages })).input_tokens,
  );
}

const refused = ({ key, retries }) => client({ apiKey: key, maxRetries: retries });
refusals("anthropic", {
  ask: ({ model, most, ...options }) =>
    refused(options).messages.create({ model, messages, max_tokens: most }),
  stream: async ({ model, most, ...options }) => {
    const stream = await refused(options).messages.create({
      model,
      messages,
      max_tokens: most,
      stream: true,
    });
    for await (const _ of stream);
  },
});

await run();
