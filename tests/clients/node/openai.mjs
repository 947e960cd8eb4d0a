// What a program does with the openai package, and the rules that its strict helper asks of a stream.

import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import OpenAI from 'openai';
import { apis, call, key } from './world.mjs';

// A failure that the package would get over by itself is one that we want to see.
export const client = (api = 0, options = {}) =>
  new OpenAI({ baseURL: `${apis[api]}/v1`, apiKey: key, maxRetries: 0, ...options });

export const here = client(0);
export const there = client(1);
export const of = (api) => (api % 2 ? there : here);

export const ask = (input = 'go', more = {}) => ({ model: 'helper', input, ...more });
export const inBackground = (input, more) => ask(input, { background: true, ...more });

// A response without what the package adds to it.
export function bare(response) {
  const { output_text, output_parsed, ...rest } = JSON.parse(JSON.stringify(response));
  for (const item of rest.output) {
    delete item.parsed_arguments;
    for (const part of item.type === 'message' ? item.content : []) delete part.parsed;
  }
  return rest;
}

export async function all(stream) {
  const events = [];
  for await (const event of await stream) {
    events.push(event);
    assert.ok(events.length < 2000, 'it has no end');
  }
  return events;
}

export const replay = (id, query = {}, api = 0) => all(of(api).responses.retrieve(id, { stream: true, ...query }));

// Reads on by itself, whatever else happens.
export function watch(stream) {
  const seen = [];
  const ended = (async () => {
    for await (const event of stream) seen.push(event);
    return seen;
  })();
  ended.catch(() => {}); // It is awaited elsewhere.
  const has = (type) => seen.some((event) => event.type === type);
  return { seen, ended, until: (type) => eventually(() => has(type), `${type} is seen`) };
}

export async function eventually(holds, what) {
  for (let tries = 0; !(await holds()); tries++) {
    assert.ok(tries < 1000, `it never comes that ${what}`);
    await sleep(20);
  }
}

export const isOver = ({ status }) => status !== 'queued' && status !== 'in_progress';

// The response when it has come to its end.
export async function over(id, api = 0) {
  let response;
  await eventually(async () => isOver((response = await of(api).responses.retrieve(id))), `${id} ends`);
  return bare(response);
}

export async function equalsStored(response) {
  for (const api of [0, 1]) assert.deepEqual(bare(await of(api).responses.retrieve(response.id)), bare(response));
}

export const text = (response) =>
  response.output
    .filter((item) => item.type === 'message')
    .map((item) => item.content.map((part) => part.text).join(''))
    .join('');

export const kinds = (response) => response.output.map((item) => item.type);

// What the model was told, but for what it is told each time.
export const said = (request) =>
  request.messages
    .filter((message) => !isRule(message))
    .map(({ role, content, tool_calls: calls = [] }) => [role, flat(content), ...calls.map((call) => call.function.name)]);

export const told = (request) => request.messages.filter(isRule).map(({ content }) => flat(content)).join('\n');

const isRule = ({ role }) => role === 'system' || role === 'developer';

const flat = (content) => (Array.isArray(content) ? content.map((part) => part.text).join('') : (content ?? ''));

// How many runs there are now that were not there before.
export async function countRuns() {
  const ids = async () => (await call('GET', '/v1/runs?limit=200')).body.data.map(({ runId }) => runId);
  const before = new Set(await ids());
  return async () => (await ids()).filter((id) => !before.has(id)).length;
}

// A fetch that counts its requests. The answers to the first ones that match are lost: they arrive, and nobody sees it.
export function counting(losing = 0, matches = () => true) {
  const counter = async (url, init) => {
    counter.count++;
    const response = await fetch(url, init);
    if (losing === 0 || !matches(String(url), init)) return response;
    losing--;
    await response.body?.cancel();
    throw new TypeError('fetch failed');
  };
  counter.count = 0;
  return counter;
}

const FIELDS = [
  'id', 'object', 'created_at', 'model', 'output', 'status', 'error', 'incomplete_details', 'usage', 'tools', 'tool_choice',
  'parallel_tool_calls', 'metadata', 'background', 'previous_response_id', 'conversation', 'instructions', 'temperature',
  'top_p', 'max_output_tokens', 'reasoning', 'text', 'truncation', 'store',
];

export function isWhole(response) {
  for (const name of FIELDS) assert.ok(name in response, `${name} is not there`);
  assert.match(response.id, /^resp_[0-9a-f]{32}$/);
  assert.equal(response.object, 'response');
  assert.ok(Number.isInteger(response.created_at) && response.created_at > 1.6e9 && response.created_at < 1e10);
  assert.ok(Array.isArray(response.output) && Array.isArray(response.tools));
  if (response.status !== 'completed') return;
  const { usage } = response;
  for (const count of [usage.input_tokens_details.cached_tokens, usage.output_tokens_details.reasoning_tokens]) {
    assert.ok(Number.isInteger(count));
  }
  assert.equal(usage.input_tokens + usage.output_tokens, usage.total_tokens);
}

const ENDS = { completed: 'completed', failed: 'failed', incomplete: 'incomplete', cancelled: 'incomplete' };

// Holds a whole stream against every rule of its order. Answers the last object.
export function obeys(events) {
  const [{ response: first }] = events;
  const items = [];
  let ended;
  for (const [n, event] of events.entries()) {
    const { type } = event;
    assert.equal(event.sequence_number, n, 'numbers are dense from 0');
    assert.equal(type === 'response.created', n === 0, 'it begins once');
    assert.ok(!event.error, 'this word ends a stream for the package');
    assert.equal(ended, undefined, 'nothing follows the end');
    if (event.response) {
      isWhole(event.response);
      for (const name of ['id', 'created_at', 'model']) assert.equal(event.response[name], first[name]);
      if (isOver(event.response)) {
        ended = event.response;
        assert.equal(type, `response.${ENDS[ended.status]}`);
      } else {
        assert.equal(event.response.status, type === 'response.in_progress' ? 'in_progress' : 'queued');
        assert.deepEqual(event.response.output, [], 'a snapshot is of then');
      }
    } else if (type === 'response.output_item.added') {
      assert.equal(event.output_index, items.length, 'each place once');
      assert.equal(event.item.status, 'in_progress');
      assert.ok(event.item.id && !items.some(({ item }) => item.id === event.item.id), 'ids are unique');
      items.push(begun(event.item));
    } else {
      const state = items[event.output_index];
      assert.ok(state && !state.done, `${type} belongs to an item under way`);
      if (type === 'response.output_item.done') finishes(state, event.item);
      else {
        assert.equal(event.item_id, state.item.id);
        state.takes(event);
      }
    }
  }
  assert.ok(ended, 'it has an end');
  assert.ok(items.every(({ done }) => done), 'all items are done');
  // What is left out of the output was torn.
  const good = items.map(({ done }) => done);
  for (const item of ended.output) {
    while (good[0]?.id !== item.id) assert.equal(good.shift()?.status, 'incomplete', 'the output is what was streamed');
    assert.deepEqual(item, good.shift());
  }
  for (const item of good) assert.equal(item.status, 'incomplete');
  return ended;
}

function finishes(state, item) {
  assert.equal(item.id, state.item.id);
  assert.equal(item.type, state.item.type);
  assert.notEqual(item.status, 'in_progress');
  assert.ok(state.equals(item), `${item.type} is what its events made`);
  state.done = item;
}

// What the events of an item have made so far. A part is a pair: its text, and whether it is done.
function begun(item) {
  const parts = [];
  const state = { item, done: undefined };
  const texts = (prefix, part, index) => ({
    takes(event) {
      const at = event[index];
      assert.equal(typeof at, 'number');
      if (event.type === `${part}.added`) {
        assert.equal(at, parts.length);
        assert.equal(event.part.text, '');
        return parts.push('');
      }
      assert.ok(at in parts, 'a part is added before anything of it');
      if (event.type === `${prefix}.delta`) return (parts[at] += event.delta);
      if (event.type === `${prefix}.done`) return assert.equal(event.text, parts[at]);
      assert.equal(event.type, `${part}.done`);
      assert.equal(event.part.text, parts[at]);
    },
    equals: ({ content, summary }) => (content ?? summary).map(({ text }) => text).join('\n') === parts.join('\n'),
  });
  const argued = (prefix, states) => ({
    takes(event) {
      if (event.type === `${prefix}_arguments.delta`) parts[0] += event.delta;
      else if (event.type === `${prefix}_arguments.done`) assert.equal(event.arguments, parts[0]);
      else assert.ok(states.includes(event.type), event.type);
    },
    equals: (item) => item.arguments === parts[0],
  });
  switch (item.type) {
    case 'message':
      assert.equal(item.role, 'assistant');
      assert.deepEqual(item.content, []);
      return Object.assign(state, texts('response.output_text', 'response.content_part', 'content_index'));
    case 'reasoning':
      assert.deepEqual(item.summary, []);
      return Object.assign(state, texts('response.reasoning_summary_text', 'response.reasoning_summary_part', 'summary_index'));
    case 'function_call':
    case 'mcp_call':
      assert.equal(item.arguments, '');
      parts.push('');
      if (item.type === 'function_call') {
        assert.ok(item.call_id && item.name);
        return Object.assign(state, argued('response.function_call', []));
      }
      assert.ok(item.server_label && item.name);
      return Object.assign(state, argued('response.mcp_call', [
        'response.mcp_call.in_progress', 'response.mcp_call.completed', 'response.mcp_call.failed',
      ]));
    default:
      assert.fail(`an item of type ${item.type}`);
  }
}
