// An EventSource with nothing but an address.

import assert from 'node:assert/strict';
import test from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { EventSource } from 'eventsource';
import { apis, call, gate, restartApi, script } from './world.mjs';

async function begin(turns, closedAt) {
  await script('helper', turns);
  const closed = closedAt && (await gate('helper', closedAt));
  const { body } = await call('POST', '/v1/runs', { agent: 'helper', input: 'go' });
  const token = await call('POST', `/v1/runs/${body.runId}/token?expiresIn=10m`);
  assert.equal(token.status, 201);
  return { runId: body.runId, eventsUrl: token.body.eventsUrl, token: token.body.token, closed };
}

const TYPES = ['run.queued', 'run.claimed', 'step.started', 'text.delta', 'step.finished', 'end'];

// Everything that arrives until the end, and how often it connected.
function watch(url) {
  const source = new EventSource(url);
  const seen = [];
  let opened = 0;
  source.addEventListener('open', () => opened++);
  const ended = new Promise((resolve) => {
    for (const type of TYPES) {
      source.addEventListener(type, (event) => {
        seen.push({ id: Number(event.lastEventId), ...JSON.parse(event.data) });
        if (type === 'end') resolve();
      });
    }
  });
  return { source, seen, ended, connections: () => opened };
}

const dense = (seen) => assert.deepEqual(seen.map((event) => event.id), seen.map((_, n) => n + 1));

test('a run is watched to its end with a token in the address', async () => {
  const { runId, eventsUrl } = await begin([{ marked: 8 }]);
  const { source, seen, ended } = watch(apis[1] + eventsUrl);
  await ended;
  source.close();
  dense(seen);
  assert.equal(seen.at(-1).type, 'run.finished');
  assert.equal(seen.at(-1).data.status, 'succeeded');
  const { body } = await call('GET', `/v1/runs/${runId}/events?limit=1000`);
  assert.deepEqual(seen.map(({ id, ...event }) => event), body.data);
});

test('a server that is restarted is found again, and nothing is missed or repeated', async () => {
  const { eventsUrl, closed } = await begin([{ marked: 30 }], 10);
  const { source, seen, ended, connections } = watch(apis[0] + eventsUrl);
  await closed.reached();
  while (seen.length === 0) await sleep(20);
  await restartApi(0);
  await closed.open();
  await ended;
  source.close();
  dense(seen);
  assert.ok(connections() >= 2, `${connections()} connections`);
});

test('one that does not close at the end is stopped by the answer to its reconnect', async () => {
  const { eventsUrl } = await begin([{ marked: 2 }]);
  const { source, seen, ended } = watch(apis[0] + eventsUrl);
  await ended;
  await new Promise((resolve) => source.addEventListener('error', () => source.readyState === source.CLOSED && resolve()));
  dense(seen);
});

test('a token opens its own run only, and a key no address at all', async () => {
  const [one, two] = [await begin([{ marked: 2 }]), await begin([{ marked: 2 }])];
  const status = async (path) => (await fetch(apis[0] + path)).status;
  assert.equal(await status(`/v1/runs/${two.runId}/events?access_token=${one.token}`), 404);
  assert.equal(await status(`/v1/runs/${one.runId}/events?access_token=${process.env.LONGHAUL_KEY}`), 401);
  assert.equal(await status(`/v1/runs/${one.runId}?access_token=${one.token}`), 200);
  for (const { runId } of [one, two]) await call('POST', `/v1/runs/${runId}/stop?wait=10`);
});
