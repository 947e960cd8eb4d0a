// A call that waits for somebody's word: forms of the streams that no run brings about yet. What the clients are given is what
// the encoders' own tests hold them to.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import test from 'node:test';
import { createOpenAI } from '@ai-sdk/openai';
import * as seven from 'ai';
import * as six from 'ai6';
import OpenAI from 'openai';
import { user } from './pages.mjs';

const views = process.env.LONGHAUL_VIEWS;
const golden = (name) => readFileSync(`${views}/${name}`, 'utf8');
const streaming = (body) => async () => new Response(body, { headers: { 'content-type': 'text/event-stream' } });
const frames = (chunks) => [...chunks.map((chunk) => JSON.stringify(chunk)), '[DONE]'].map((data) => `data: ${data}\n\n`).join('');

const toolOf = (message) => message.parts.find(({ type }) => type === 'dynamic-tool');

for (const [version, sdk] of Object.entries({ six, seven })) {
  // What the page has after a stream, if it had `message` before.
  const read = async (chunks, message) => {
    const transport = new sdk.DefaultChatTransport({ api: 'http://localhost/api/chat', fetch: streaming(frames(chunks)) });
    const stream = await transport.sendMessages({ chatId: 'c', messages: [user('m1', 'pay')], trigger: 'submit-message' });
    let last;
    for await (const next of sdk.readUIMessageStream({ message, stream, terminateOnError: true })) last = next;
    return JSON.parse(JSON.stringify(last));
  };

  for (const [word, legs] of Object.entries(JSON.parse(golden('ui/approvals.json')))) {
    test(`version ${version} shows the question, and what comes of it when it is ${word}`, async () => {
      const asked = await read(legs[0].chunks);
      assert.deepEqual(asked, legs[0].message);
      assert.deepEqual([toolOf(asked).state, typeof toolOf(asked).approval.id], ['approval-requested', 'string']);

      const approved = word === 'approved';
      Object.assign(toolOf(asked), { state: 'approval-responded', approval: { ...toolOf(asked).approval, approved } });
      const over = await read(legs[1].chunks, asked);
      assert.equal(toolOf(over).state, approved ? 'output-available' : 'output-denied');
      assert.deepEqual(over, legs[1].message);
      for (const { message } of legs) assert.ok(await sdk.validateUIMessages({ messages: [message] }));
    });

    test(`version ${version} shows the same from the start when it was ${word} before`, async () => {
      const whole = await read([...legs[0].chunks, ...legs[1].chunks]);
      // No chunk that all versions accept tells of the answer itself.
      toolOf(whole).approval.approved = word === 'approved';
      assert.deepEqual(whole, legs[1].message);
    });
  }
}

test('the strict helper of the openai package ends with the request', async () => {
  const openai = new OpenAI({ apiKey: 'none', baseURL: 'http://localhost/v1', fetch: streaming(golden('responses/approval.sse')) });
  const response = await openai.responses.stream({ model: 'helper', input: 'pay' }).finalResponse();
  assert.equal(response.status, 'completed');
  assert.deepEqual(response.output.map(({ type }) => type), ['message', 'mcp_approval_request']);
  assert.deepEqual(JSON.parse(response.output[1].arguments), { amount: 5 });
});

test("the AI SDK's provider asks its program", async () => {
  const openai = createOpenAI({ apiKey: 'none', baseURL: 'http://localhost/v1', fetch: streaming(golden('responses/approval.sse')) });
  const result = seven.streamText({ model: openai.responses('helper'), prompt: 'pay', maxRetries: 0 });
  const parts = [];
  for await (const part of result.fullStream) parts.push(part);
  const request = parts.find(({ type }) => type === 'tool-approval-request');
  assert.ok(request, JSON.stringify(parts));
  assert.deepEqual(request.toolCall.input, { amount: 5 });
});
