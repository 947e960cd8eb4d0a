// What a page does with the AI SDK's transports.

import assert from 'node:assert/strict';
import { DefaultChatTransport, readUIMessageStream } from 'ai';
import { WorkflowChatTransport } from '@ai-sdk/workflow/client';
import { apis, headers } from './world.mjs';

export const chatApi = (api = 0) => `${apis[api]}/api/chat`;

export const page = (api = 0, options = {}) =>
  new DefaultChatTransport({ api: chatApi(api), headers, body: { agent: 'helper' }, ...options });

// Its requests carry no headers by themselves.
export function workflowPage(api = 0, { fetch: inner = fetch, ...options } = {}) {
  const withKey = (url, init) => inner(url, { ...init, headers: { ...init?.headers, ...headers } });
  return new WorkflowChatTransport({ api: chatApi(api), fetch: withKey, maxConsecutiveErrors: 10_000, ...options });
}

export const user = (id, text) => ({ id, role: 'user', parts: [{ type: 'text', text }] });

export const submit = (transport, chatId, message, options) =>
  transport.sendMessages({ chatId, messages: [message], trigger: 'submit-message', ...options });

// The message that the SDK makes of a stream, after so many of its states.
export async function read(stream, states = Infinity) {
  let message;
  let count = 0;
  for await (const next of readUIMessageStream({ stream, terminateOnError: true })) {
    message = next;
    if (++count >= states) break;
  }
  return { message: message && JSON.parse(JSON.stringify(message)), count };
}

export async function chunks(stream) {
  const all = [];
  for await (const chunk of stream) all.push(chunk);
  return all;
}

export async function load(chatId, api = 0) {
  const response = await fetch(`${chatApi(api)}/${encodeURIComponent(chatId)}`, { headers });
  assert.equal(response.status, 200);
  return response.json();
}

export async function stop(chatId, api = 0) {
  const response = await fetch(`${chatApi(api)}/${encodeURIComponent(chatId)}/stop`, { method: 'POST', headers });
  return { status: response.status, body: await response.json() };
}

// What a reload shows is what was streamed: ids, parts, their order, their texts.
export async function equalsStored(chatId, message, api = 0) {
  const { messages } = await load(chatId, api);
  assert.deepEqual(messages.at(-1), message);
}

export const text = (message) =>
  message.parts.filter((part) => part.type === 'text').map((part) => part.text).join('');
