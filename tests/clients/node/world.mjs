// The world of a test, as its script sees it: where the API is, and what may be made to happen.

import { createInterface } from 'node:readline';
import { afterEach } from 'node:test';

export const apis = process.env.LONGHAUL_APIS.split(' ');
export const key = process.env.LONGHAUL_KEY;
export const headers = { authorization: `Bearer ${key}` };

const waiting = [];
const answers = createInterface({ input: process.stdin });
answers.on('line', (line) => {
  waiting.shift()(JSON.parse(line));
  if (waiting.length === 0) process.stdin.unref();
});
answers.on('close', () => process.exit(1)); // The world is gone.
process.stdin.unref();

// Wishes are fulfilled one after the other. While one is waited for, the process does not end.
function wish(wish) {
  return new Promise((resolve) => {
    process.stdin.ref();
    waiting.push(resolve);
    process.stdout.write(`\n@${JSON.stringify(wish)}\n`);
  });
}

export const script = (model, turns) => wish({ do: 'script', model, turns });
// The bodies of all requests for this model so far.
export const asked = (model) => wish({ do: 'asked', model });
// A tool refuses with this status from now on, or does what it should again.
export const tool = (name, status = null) => wish({ do: 'tool', name, status });
export const replaceWorkers = () => wish({ do: 'replace_workers' });
export const restartApi = (api) => wish({ do: 'restart_api', api });

const closed = new Set();

export async function gate(model, token) {
  const gate = await wish({ do: 'gate', model, token });
  closed.add(gate);
  return {
    reached: (by = 1) => wish({ do: 'reached', gate, by }),
    open: () => open(gate),
  };
}

function open(gate) {
  closed.delete(gate);
  return wish({ do: 'open', gate });
}

// What a test that failed has left closed would hold all that follow.
afterEach(async () => {
  for (const gate of closed) await open(gate);
});

// A call of the native API.
export async function call(method, path, body, api = 0) {
  const response = await fetch(apis[api] + path, {
    method,
    headers: { ...headers, 'content-type': 'application/json' },
    body: body && JSON.stringify(body),
  });
  return { status: response.status, body: response.status === 204 ? null : await response.json() };
}

// A fetch whose bodies break off after so many bytes, as a lost network does.
export function cutting(bytes) {
  return async (url, init) => {
    const response = await fetch(url, init);
    if (!response.ok || !response.body) return response;
    let left = bytes();
    const cut = new TransformStream({
      transform(chunk, controller) {
        controller.enqueue(chunk.subarray(0, left));
        left -= chunk.length;
        if (left <= 0) controller.error(new Error('cut'));
      },
    });
    return new Response(response.body.pipeThrough(cut), response);
  };
}

// All marks of one answer of the model, in order.
export const marks = (attempt, turn, count) =>
  Array.from({ length: count }, (_, i) => `a${attempt}.s${turn}.${i} `).join('');

// Numbers between 0 and 1 that are the same in each test run.
export function dice(seed) {
  let state = seed;
  return () => (state = (state * 48271) % 2147483647) / 2147483647;
}
