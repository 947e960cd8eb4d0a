// The world of a test, as its script sees it: where the API is, and what may be made to happen.

import { createInterface } from 'node:readline';

export const apis = process.env.LONGHAUL_APIS.split(' ');
export const headers = { authorization: `Bearer ${process.env.LONGHAUL_KEY}` };

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
export const replaceWorkers = () => wish({ do: 'replace_workers' });
export const restartApi = (api) => wish({ do: 'restart_api', api });

export async function gate(model, token) {
  const gate = await wish({ do: 'gate', model, token });
  return {
    reached: (by = 1) => wish({ do: 'reached', gate, by }),
    open: () => wish({ do: 'open', gate }),
  };
}

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
