// The official npm client against a gateway: chat, stream, tools, responses. Prints one JSON line per check.
import assert from "node:assert/strict";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.env.GATEWAY_URL + "/v1", apiKey: "k", maxRetries: 0 });
const messages = [{ role: "user", content: "What is new under the sun?" }];
const parameters = {
  type: "object",
  properties: { city: { type: "string" }, days: { type: "integer" } },
  required: ["city", "days"],
  additionalProperties: false,
};
const tools = [{ type: "function", function: { name: "weather", parameters, strict: true } }];

const checks = {
  async chat(kind) {
    const answer = await client.chat.completions.create({ model: `${kind}/echo`, messages });
    assert.equal(answer.choices[0].message.content, messages[0].content);
    assert.equal(answer.usage.total_tokens, 12);
    assert.match(answer._request_id, /^req/);
  },

  async stream(kind) {
    const options = { stream: true, stream_options: { include_usage: true } };
    const stream = await client.chat.completions.create({ model: `${kind}/echo`, messages, ...options });
    const chunks = [];
    for await (const chunk of stream) chunks.push(chunk);
    assert.equal(chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join(""), messages[0].content);
    assert.deepEqual(chunks.at(-1).choices, []);
    assert.equal(chunks.at(-1).usage.total_tokens, 12);
  },

  async tools(kind) {
    const answer = await client.chat.completions.create({ model: `${kind}/tools`, messages, tools });
    const calls = answer.choices[0].message.tool_calls;
    assert.deepEqual(calls.map((call) => call.function.name), ["weather", "time"]);
    assert.deepEqual(JSON.parse(calls[0].function.arguments), { city: "Bern", days: 2 });
    const runner = client.chat.completions.stream({ model: `${kind}/says`, messages, tools });
    const final = await runner.finalChatCompletion();
    assert.equal(final.choices[0].message.content, "Let me look.");
    assert.equal(final.choices[0].message.tool_calls[0].function.name, "weather");
  },

  async responses(kind) {
    const first = await client.responses.create({ model: `${kind}/echo`, input: "my name is Ada" });
    assert.equal(first.output_text, "my name is Ada");
    assert.equal((await client.responses.retrieve(first.id)).output_text, first.output_text);
    const stream = client.responses.stream({
      model: `${kind}/echo`,
      input: "who am I?",
      previous_response_id: first.id,
    });
    let text = "";
    stream.on("response.output_text.delta", (event) => (text += event.delta));
    const second = await stream.finalResponse();
    assert.equal(text, "who am I?");
    assert.equal(second.previous_response_id, first.id);
    await client.responses.delete(first.id);
    await assert.rejects(client.responses.retrieve(first.id), OpenAI.NotFoundError);
  },

  async embeddings(kind) {
    if (kind === "anthropic") return;
    const answer = await client.embeddings.create({ model: `${kind}/echo`, input: ["a", "b"], dimensions: 8 });
    assert.deepEqual(answer.data.map((one) => one.embedding.length), [8, 8]);
  },

  async models(kind) {
    assert.equal((await client.models.retrieve(`${kind}/echo`)).id, `${kind}/echo`);
    const ids = [];
    for await (const model of client.models.list()) ids.push(model.id);
    assert.ok(ids.includes(`${kind}/echo`));
  },

  async errors(kind) {
    await assert.rejects(client.chat.completions.create({ model: "no/such", messages }), (error) => {
      assert.ok(error instanceof OpenAI.NotFoundError);
      assert.equal(error.code, "model_not_found");
      assert.equal(error.param, "model");
      return true;
    });
    const cut = await client.chat.completions.create({ model: `${kind}/cut`, messages, stream: true });
    await assert.rejects(async () => {
      for await (const _ of cut);
    }, OpenAI.APIError);
  },
};

for (const kind of ["openai", "azure", "anthropic"]) {
  for (const [name, check] of Object.entries(checks)) {
    await check(kind);
    console.log(JSON.stringify({ kind, name }));
  }
}
