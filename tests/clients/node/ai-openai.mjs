// The AI SDK's own provider for OpenAI, as programs use it that never heard of us.

import assert from 'node:assert/strict';
import test from 'node:test';
import { createOpenAI } from '@ai-sdk/openai';
import {
  APICallError, Output, convertToModelMessages, generateText, readUIMessageStream, stepCountIs, streamText, tool as aTool,
} from 'ai';
import { z } from 'zod';
import { apis, asked, call, gate, key, marks, replaceWorkers, script } from './world.mjs';
import { countRuns, eventually, here, isOver, over, said, text } from './openai.mjs';

globalThis.AI_SDK_LOG_WARNINGS = false;

const model = (api = 0, { agent = 'helper', ...options } = {}) =>
  createOpenAI({ baseURL: `${apis[api]}/v1`, apiKey: key, ...options }).responses(agent);

// A failure that the SDK would get over by itself is one that we want to see.
const using = (more) => ({ model: model(), maxRetries: 0, ...more });
const generate = (more) => generateText(using(more));
const stream = (more) => streamText(using({ onError: () => {}, ...more }));
const withOptions = (openai) => ({ providerOptions: { openai } });

const withTool = [
  { marked: 3, reasoning: ['Let ', 'me ', 'look.'], calls: [['look', { op: 'weather' }]] },
  { marked: 20 },
];
const calling = [{ marked: 2, reasoning: ['Hm.'], calls: [['answer', { q: 1 }]] }, { marked: 4 }];

const answering = (execute = ({ q }) => ({ twice: 2 * q })) => ({
  tools: { answer: aTool({ description: 'Answers.', inputSchema: z.object({ q: z.number() }), execute }) },
  stopWhen: stepCountIs(4),
});

const user = (content) => ({ role: 'user', content });
// What the model is told of an answer that `withTool` made.
const looked = [['assistant', marks(1, 1, 3), 'look'], ['tool', 'looked'], ['assistant', marks(1, 2, 20)]];
const lately = async (count = 1) => (await asked('helper')).slice(-count).map(said);
// What a tool of the server says is a matter of its own.
const withoutResults = (messages) => messages.map((message) => (message[0] === 'tool' ? ['tool', 'looked'] : message));

async function parts(result, all = []) {
  for await (const part of result.fullStream) all.push(part);
  return all;
}

// How each part of an answer begins.
const shape = (parts) => parts.map(({ type }) => type).filter((type) => !/-(start|delta|end)$|^(start|start-step)$/.test(type));

function checkTool({ toolName, input, providerExecuted, output }) {
  assert.deepEqual([toolName, input, providerExecuted], ['mcp.look', { op: 'weather' }, true]);
  if (output === undefined) return;
  assert.deepEqual([output.type, output.name, JSON.parse(output.arguments)], ['call', 'look', { op: 'weather' }]);
  assert.ok(output.serverLabel && output.output);
}

test('generateText sees the text, the reasoning, the tool that the server ran, and what it cost', async () => {
  await script('helper', withTool);
  const result = await generate({ prompt: 'one', system: 'Speak up.' });
  assert.equal(result.finishReason, 'stop');
  assert.deepEqual(result.content.map(({ type }) => type), ['reasoning', 'text', 'tool-call', 'tool-result', 'text']);
  assert.equal(result.reasoningText, 'Let me look.');
  for (const part of [...result.toolCalls, ...result.toolResults]) checkTool(part);
  assert.deepEqual([result.toolCalls.length, result.toolResults.length, result.steps.length], [1, 1, 1]);
  const stored = await over(result.response.id, 1);
  assert.equal(result.content.filter(({ type }) => type === 'text').map((part) => part.text).join(''), text(stored));
  const { input_tokens: input, output_tokens: output } = stored.usage;
  assert.deepEqual([result.usage.inputTokens, result.usage.outputTokens], [input, output]);
  assert.equal(result.response.timestamp.getTime(), stored.created_at * 1000);
  assert.deepEqual([result.warnings ?? [], result.response.modelId], [[], 'helper']);
});

test('streamText sees the same while it is made', async () => {
  await script('helper', withTool);
  const result = stream({ prompt: 'one', model: model(1) });
  const all = await parts(result);
  assert.deepEqual(shape(all), ['tool-call', 'tool-result', 'finish-step', 'finish']);
  assert.deepEqual(all.filter(({ type }) => /-(start|end)$/.test(type)).map(({ type }) => type),
    ['reasoning-start', 'reasoning-end', 'text-start', 'text-end', 'text-start', 'text-end']);
  for (const part of all.filter(({ type }) => /^tool-(call|result)$/.test(type))) checkTool(part);
  const written = all.filter(({ type }) => type === 'text-delta');
  assert.equal(written.map((part) => part.text).join(''), marks(1, 1, 3) + marks(1, 2, 20));
  assert.equal(await result.reasoningText, 'Let me look.');
  assert.equal(await result.finishReason, 'stop');
  const stored = await over((await result.response).id);
  assert.equal((await result.usage).outputTokens, stored.usage.output_tokens);
  assert.ok(stored.usage.output_tokens > 0);
});

for (const [name, run] of [['generateText', generate], ['streamText', stream]]) {
  test(`${name} runs the tools of its program, step by step`, async () => {
    await script('helper', calling);
    const result = run({ prompt: 'How much?', ...answering() });
    const steps = await (await result).steps;
    assert.deepEqual(steps.map(({ finishReason }) => finishReason), ['tool-calls', 'stop']);
    assert.deepEqual(steps[0].toolCalls.map(({ toolName, input }) => [toolName, input]), [['answer', { q: 1 }]]);
    assert.deepEqual(steps[0].toolResults.map(({ output }) => output), [{ twice: 2 }]);
    assert.equal(steps[1].text, marks(1, 2, 4));
    const [first, second] = await lately(2);
    assert.deepEqual(first, [['user', 'How much?']]);
    assert.deepEqual(second, [...first, ['assistant', marks(1, 1, 2), 'answer'], ['tool', '{"twice":2}']]);
    const [{ tools }] = (await asked('helper')).slice(-1);
    assert.equal(tools.find(({ function: { name } }) => name === 'answer').function.description, 'Answers.');
  });
}

test('calls at a time, beside one of the server, one of which fails, keep their places', async () => {
  const calls = [['answer', { q: 1 }], ['look', { op: 'x' }], ['answer', { q: 2 }]];
  await script('helper', [{ marked: 2, calls }, { marked: 4 }]);
  const result = await generate({ prompt: 'go', ...answering(({ q }) => {
    if (q === 2) throw new Error('no idea');
    return q;
  }) });
  assert.equal(result.text, marks(1, 2, 4));
  const [[, assistant, ...results]] = await lately();
  assert.deepEqual(assistant.slice(0, 2), ['assistant', marks(1, 1, 2)]);
  assert.deepEqual(assistant.slice(2).sort(), ['answer', 'answer', 'look']);
  assert.deepEqual(results.map(([role]) => role), ['tool', 'tool', 'tool']);
  assert.ok(results.some(([, output]) => output === '1') && results.some(([, output]) => /no idea/.test(output)));
});

test('a conversation that the program keeps goes on by references to what is stored', async () => {
  await script('helper', withTool);
  const first = await generate({ prompt: 'one' });
  const history = [user('one'), ...first.response.messages];
  const second = await generate({ messages: [...history, user('two')], include: { requestBody: true } });
  assert.equal(second.request.body.input.filter(({ type }) => type === 'item_reference').length, 4);
  await parts(stream({ messages: [...history, user('two'), ...second.response.messages, user('three')], model: model(1) }));
  const [told] = await lately(2);
  assert.deepEqual(withoutResults(told), [['user', 'one'], ...looked, ['user', 'two'], ...looked, ['user', 'three']]);
});

test('the messages of a page go on like those of a program', async () => {
  await script('helper', [{ marked: 3, calls: [['look', { op: 'x' }], ['answer', { q: 1 }]] }, { marked: 4 }]);
  const { stopWhen, tools } = answering();
  let message;
  const chunks = stream({ prompt: 'one', tools, stopWhen }).toUIMessageStream();
  for await (const next of readUIMessageStream({ stream: chunks, terminateOnError: true })) message = next;
  assert.equal(message.parts.find(({ type }) => type === 'dynamic-tool').state, 'output-available');
  const page = (id, text) => ({ id, role: 'user', parts: [{ type: 'text', text }] });
  const messages = await convertToModelMessages([page('a', 'one'), message, page('b', 'two')], { tools });
  await generate({ messages, tools, stopWhen });
  const [told] = (await lately(2)).map(withoutResults);
  assert.deepEqual(told.map(([role]) => role), ['user', 'assistant', 'tool', 'tool', 'assistant', 'user']);
  assert.deepEqual([told[1][1], told[4], told[5]], [marks(1, 1, 3), ['assistant', marks(1, 2, 4)], ['user', 'two']]);
});

test('one that wants nothing stored sends its texts', async () => {
  await script('helper', withTool);
  const first = await generate({ prompt: 'one', ...withOptions({ store: false }) });
  const messages = [user('one'), ...first.response.messages, user('two')];
  const second = await generate({ messages, include: { requestBody: true }, ...withOptions({ store: false }) });
  assert.deepEqual(second.request.body.input.map(({ role }) => role), ['user', 'assistant', 'assistant', 'user']);
  // The SDK leaves out what the server did in between.
  const [told] = await lately(2);
  assert.deepEqual(told.map(([role]) => role), ['user', 'assistant', 'user']);
  assert.equal(told[1][1].replaceAll(/\s/g, ''), (marks(1, 1, 3) + marks(1, 2, 20)).replaceAll(/\s/g, ''));
  await script('helper', calling);
  const tools = await generate({ prompt: 'one', ...answering(), ...withOptions({ store: false }) });
  assert.equal(tools.text, marks(1, 2, 4));
  assert.deepEqual((await lately())[0][1], ['assistant', marks(1, 1, 2), 'answer']);
});

test('a previous response stands for what was said, in a step with tools too', async () => {
  await script('helper', withTool);
  const first = await generate({ prompt: 'one' });
  await script('helper', calling);
  const previousResponseId = first.response.id;
  const second = await generate({ prompt: 'two', ...answering(), ...withOptions({ previousResponseId }) });
  assert.deepEqual([second.text, second.steps.length], [marks(1, 2, 4), 2]);
  const [told] = await lately();
  assert.deepEqual(withoutResults(told).slice(0, 5), [['user', 'one'], ...looked, ['user', 'two']]);
  assert.deepEqual(told.slice(5), [['assistant', marks(1, 1, 2), 'answer'], ['tool', '{"twice":2}']]);
});

test('a conversation of the server is gone on with, in a step with tools too', async () => {
  const conversation = (await here.conversations.create()).id;
  await script('helper', calling);
  const first = await generate({ prompt: 'one', ...answering(), ...withOptions({ conversation }) });
  assert.deepEqual([first.text, first.steps.length], [marks(1, 2, 4), 2]);
  assert.deepEqual((await lately())[0].slice(-1), [['tool', '{"twice":2}']]);
  await script('helper', [{ marked: 2 }]);
  await parts(stream({ prompt: 'two', ...withOptions({ conversation }) }));
  const [told] = await lately();
  assert.deepEqual([told[0], ...told.slice(-2)], [['user', 'one'], ['assistant', marks(1, 2, 4)], ['user', 'two']]);
});

test('a structured answer is asked for by its schema, and parsed', async () => {
  const output = Output.object({ schema: z.object({ n: z.number() }), name: 'number' });
  await script('helper', [{ text: ['{"n"', ':', ' 7}'] }]);
  assert.deepEqual((await generate({ prompt: 'go', output })).output, { n: 7 });
  const result = stream({ prompt: 'go', output });
  let last;
  for await (const partial of result.partialOutputStream) last = partial;
  assert.deepEqual([last, await result.output], [{ n: 7 }, { n: 7 }]);
  const wanted = (await asked('helper')).at(-1).response_format;
  assert.deepEqual([wanted.type, wanted.json_schema.name], ['json_schema', 'number']);
  assert.deepEqual(wanted.json_schema.schema.required, ['n']);
});

test('what ends an answer is told by its own word', async () => {
  await script('helper', [{ marked: 3, finishReason: 'length' }]);
  assert.equal((await generate({ prompt: 'go' })).finishReason, 'length');
  const cut = stream({ prompt: 'go' });
  assert.deepEqual([await cut.text, await cut.finishReason], [marks(1, 1, 3), 'length']);

  await script('helper', [withTool[0], { marked: 3, status: 400 }]);
  const failed = await parts(stream({ prompt: 'go' }));
  assert.match(String(failed.find(({ type }) => type === 'error').error), /400/);
  assert.equal(failed.at(-1).finishReason, 'error');

  await script('helper', [{ marked: 30 }]);
  const closed = await gate('helper', 5);
  const result = stream({ prompt: 'go', include: { rawChunks: true } });
  const seen = [];
  for await (const part of result.fullStream) {
    seen.push(part);
    if (part.type === 'text-delta' && seen.filter(({ type }) => type === 'text-delta').length === 1) {
      const { rawValue } = seen.find(({ type }) => type === 'raw');
      await here.responses.cancel(rawValue.response.id);
    }
  }
  await closed.open();
  assert.deepEqual([seen.at(-1).type, seen.at(-1).finishReason], ['finish', 'other']);
});

test('a failure at once is an error with its words, and not three', async () => {
  await script('helper', [{ marked: 3, status: 400 }]);
  const runs = await countRuns();
  await assert.rejects(generate({ prompt: 'go', maxRetries: 2 }), { name: 'AI_APICallError', message: /400/ });
  assert.equal(await runs(), 1, 'one run, not streamed');
  const failed = await parts(stream({ prompt: 'go', maxRetries: 2 }));
  assert.match(String(failed.find(({ type }) => type === 'error').error), /400/);
  assert.equal(await runs(), 2, 'one more run, streamed');
});

test('what is refused says why, and is not tried again', async () => {
  const refused = (options, status, words) => assert.rejects(generate({ prompt: 'go', maxRetries: 2, ...options }), (error) => {
    assert.ok(APICallError.isInstance(error) && !error.isRetryable, `${error}`);
    assert.ok(status.includes(error.statusCode));
    assert.match(error.message, words);
    return true;
  });
  await refused({ model: model(0, { apiKey: 'lh_wrong' }) }, [401], /./);
  await refused({ model: model(0, { agent: 'nobody' }) }, [400, 404], /nobody/);
  await refused(withOptions({ previousResponseId: `resp_${'0'.repeat(32)}` }), [400, 404], /./);
});

test('a program that leaves does not end its run', async () => {
  await script('helper', [{ marked: 10 }]);
  const closed = await gate('helper', 4);
  const controller = new AbortController();
  let id;
  for await (const part of stream({ prompt: 'go', include: { rawChunks: true }, abortSignal: controller.signal }).fullStream) {
    if (part.type === 'raw') id ??= part.rawValue.response.id;
    if (part.type === 'text-delta') controller.abort();
  }
  await closed.reached();
  assert.ok(!isOver(await here.responses.retrieve(id)));
  await closed.open();
  const stored = await over(id, 1);
  assert.deepEqual([stored.status, text(stored)], ['completed', marks(1, 1, 10)]);
});

test('what was torn or cancelled has been seen, and the conversation goes on behind it', async () => {
  await script('helper', [{ marked: 12 }]);
  const closed = await gate('helper', 6);
  const torn = stream({ prompt: 'one' });
  const seen = [];
  const reading = parts(torn, seen);
  await closed.reached();
  await eventually(() => seen.some(({ type }) => type === 'text-delta'), 'something of the first attempt is seen');
  await replaceWorkers();
  await closed.reached(2);
  await closed.open();
  await reading;
  assert.equal(seen.at(-1).finishReason, 'stop');
  assert.ok((await torn.text).endsWith(marks(2, 1, 12)));
  const { id, messages } = await torn.response;
  assert.equal(text(await over(id)), marks(2, 1, 12));

  const again = await gate('helper', 7);
  const cancelled = stream({ messages: [user('one'), ...messages, user('two')] });
  const begun = [];
  const leaving = parts(cancelled, begun);
  await eventually(() => begun.some(({ type }) => type === 'text-delta'), 'the next turn has begun');
  await again.reached();
  const [run] = (await call('GET', '/v1/runs?limit=1')).body.data;
  await call('POST', `/v1/runs/${run.runId}/stop?wait=10`);
  await again.open();
  await leaving;
  const history = [user('one'), ...messages, user('two'), ...(await cancelled.response).messages, user('three')];

  await script('helper', [{ marked: 2 }]);
  await generate({ messages: history });
  const [told] = await lately();
  const [first, answer, ...rest] = told;
  assert.deepEqual([first, answer[0], told.at(-1)], [['user', 'one'], 'assistant', ['user', 'three']]);
  assert.ok(answer[1].endsWith(marks(2, 1, 12)));
  assert.deepEqual(rest.filter(([role]) => role === 'user').map(([, content]) => content), ['two', 'three']);
});
