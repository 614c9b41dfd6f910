// OpenAI's own SDK: chat completions, Responses and embeddings.

import OpenAI from "openai";
import { given, refusals, result, run, settings, system } from "./cases.mjs";

const { url, keys, models, question, schema } = settings;
const client = (options) => new OpenAI({ baseURL: `${url}/v1`, apiKey: keys.good, ...options });
const usual = client({ maxRetries: 0 });

const parameters = { type: "object" };
const chatTools = settings.tools.map((name) => ({
  type: "function",
  function: { name, parameters },
}));
const responsesTools = settings.tools.map((name) => ({
  type: "function",
  name,
  parameters,
  strict: false,
}));
const json = { name: "answer", strict: true, schema };

/** Merge a stream's deltas into a message: texts grow, calls are matched by their index. */
async function collected(stream) {
  const message = { role: "assistant" };
  let usage, finish;
  for await (const chunk of stream) {
    usage = chunk.usage ?? usage;
    for (const { delta, finish_reason } of chunk.choices) {
      finish = finish_reason ?? finish;
      const { role, tool_calls = [], ...others } = delta;
      for (const { index, ...call } of tool_calls) {
        const calls = (message.tool_calls ??= []);
        if (calls[index]) calls[index].function.arguments += call.function.arguments;
        else calls[index] = call;
      }
      for (const [name, more] of Object.entries(others)) {
        message[name] = Array.isArray(more)
          ? [...(message[name] ?? []), ...more]
          : (message[name] ?? "") + more;
      }
    }
  }
  return { message, usage, finish };
}

async function chat(ask, stream) {
  if (stream) {
    const asked = { ...ask, stream: true, stream_options: { include_usage: true } };
    return collected(await usual.chat.completions.create(asked));
  }
  const { choices, usage } = await usual.chat.completions.create(ask);
  return { message: choices[0].message, usage, finish: choices[0].finish_reason };
}

async function chatText(ask, stream) {
  const { message, usage, finish } = await chat(ask, stream);
  return { text: message.content, thought: message.reasoning_content, usage, finish };
}

async function chatTurns(ask, stream) {
  const messages = [...ask.messages];
  const options = { reasoning_effort: "high", max_completion_tokens: 20000 };
  const texts = [];
  for (;;) {
    const { message } = await chat({ ...ask, ...options, messages, tools: chatTools }, stream);
    texts.push(message.content ?? "");
    messages.push(message);
    if (!message.tool_calls?.length) return texts;
    for (const { id, function: called } of message.tool_calls) {
      const content = result(called.name, JSON.parse(called.arguments));
      messages.push({ role: "tool", tool_call_id: id, content });
    }
  }
}

async function respond(ask, stream) {
  return stream ? usual.responses.stream(ask).finalResponse() : usual.responses.create(ask);
}

async function responsesText(ask, stream) {
  const { output, output_text: text, usage, status: finish } = await respond(ask, stream);
  const [reasoning] = output.filter((item) => item.type === "reasoning");
  return { text, thought: reasoning?.summary[0].text, usage, finish };
}

async function responsesTurns(ask, stream) {
  const input = [{ role: "user", content: ask.input }];
  const options = { reasoning: { effort: "high", summary: "auto" }, store: false };
  const texts = [];
  for (;;) {
    const { output, output_text } = await respond(
      { ...ask, ...options, input, tools: responsesTools },
      stream,
    );
    texts.push(output_text);
    input.push(...output);
    const calls = output.filter((item) => item.type === "function_call");
    if (!calls.length) return texts;
    for (const { call_id, name, arguments: said } of calls) {
      input.push({ type: "function_call_output", call_id, output: result(name, JSON.parse(said)) });
    }
  }
}

for (const [provider, model] of Object.entries(models)) {
  const chatAsk = (name) => {
    const messages = [
      { role: "system", content: system(name) },
      { role: "user", content: question },
    ];
    return { model, messages };
  };
  const responsesAsk = (name) => ({ model, input: question, instructions: system(name) });
  for (const mode of ["whole", "streamed"]) {
    for (const [name, one, ask] of [
      [`openai-chat/${provider}/text ${mode}`, chatText, chatAsk],
      [`openai-chat/${provider}/turns ${mode}`, chatTurns, chatAsk],
      [`openai-responses/${provider}/text ${mode}`, responsesText, responsesAsk],
      [`openai-responses/${provider}/turns ${mode}`, responsesTurns, responsesAsk],
    ]) {
      given(name, () => one(ask(name), mode === "streamed"));
    }
  }
  const inChat = `openai-chat/${provider}/object`;
  given(inChat, async () => {
    const response_format = { type: "json_schema", json_schema: json };
    const { choices } = await usual.chat.completions.parse({ ...chatAsk(inChat), response_format });
    return choices[0].message.parsed;
  });
  const inResponses = `openai-responses/${provider}/object`;
  given(inResponses, async () => {
    const text = { format: { type: "json_schema", ...json } };
    return (await usual.responses.parse({ ...responsesAsk(inResponses), text })).output_parsed;
  });
}

for (const [provider, model] of Object.entries(settings.embeddings)) {
  given(`openai-chat/${provider}/embeddings`, async () => {
    const { data, usage } = await usual.embeddings.create({ model, input: ["one", "two"] });
    return { vectors: data.map((one) => one.embedding), tokens: usage.total_tokens };
  });
}

async function drained(stream) {
  for await (const _ of await stream);
}

const refused = ({ key, retries }) => client({ apiKey: key, maxRetries: retries });
const messages = [{ role: "user", content: question }];
refusals("openai-chat", {
  ask: ({ model, most, ...options }) =>
    refused(options).chat.completions.create({ model, messages, max_completion_tokens: most }),
  stream: ({ model, ...options }) =>
    drained(refused(options).chat.completions.create({ model, messages, stream: true })),
});
refusals("openai-responses", {
  ask: ({ model, most, ...options }) =>
    refused(options).responses.create({ model, input: question, max_output_tokens: most }),
  stream: ({ model, ...options }) =>
    drained(refused(options).responses.create({ model, input: question, stream: true })),
});

await run();
