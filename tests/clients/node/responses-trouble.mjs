// The openai package when replies are lost, connections are cut and processes die.

import assert from 'node:assert/strict';
import test from 'node:test';
import OpenAI from 'openai';
import { asked, gate, marks, replaceWorkers, restartApi, script } from './world.mjs';
import {
  all, ask, bare, client, countRuns, counting, equalsStored, here, inBackground, obeys, of, over, replay, text, there, watch,
} from './openai.mjs';

const isCreate = (url, { method }) => method === 'POST' && url.endsWith('/responses');
const isCancel = (url) => url.endsWith('/cancel');

test('a worker that is killed in the middle of a step tears its text, and the strict helper reports the good one', async () => {
  await script('helper', [{ marked: 12 }]);
  const closed = await gate('helper', 6);
  const stream = here.responses.stream(inBackground());
  const watching = watch(stream);
  await closed.reached();
  await watching.until('response.output_text.delta');
  await replaceWorkers();
  await closed.reached(2);
  await closed.open();
  const events = await watching.ended;
  const response = await stream.finalResponse();
  assert.equal(response.output_text, marks(2, 1, 12));
  const ids = events.flatMap(({ response }) => response?.id ?? []);
  assert.equal(new Set(ids).size, 1, 'one response');
  const messages = events.filter(({ type }) => type === 'response.output_item.done').map(({ item }) => item);
  assert.deepEqual(messages.map(({ status }) => status), ['incomplete', 'completed']);
  const [torn, good] = messages.map(({ content }) => content[0].text);
  assert.ok(marks(1, 1, 6).startsWith(torn), torn);
  assert.equal(good, marks(2, 1, 12));
  await equalsStored(response);
  assert.deepEqual(obeys(await replay(response.id, {}, 1)), bare(response));
});

test('a step that is done over behind a tool keeps what came before', async () => {
  await script('helper', [{ marked: 3, calls: [['look', { op: 'x' }]] }, { marked: 12 }]);
  const closed = await gate('helper', 8);
  const watching = watch(await here.responses.create(inBackground('go', { stream: true })));
  await closed.reached();
  await replaceWorkers();
  await closed.reached(2);
  await closed.open();
  const response = obeys(await watching.ended);
  assert.equal(response.status, 'completed');
  assert.ok(text(response).startsWith(marks(1, 1, 3)) && text(response).endsWith(marks(2, 2, 12)));
  assert.equal(response.output.filter(({ type }) => type === 'mcp_call').length, 1);
  await equalsStored(response);
});

test('an API process that is killed in the middle of a stream is a failure, and the other one goes on', async () => {
  await script('helper', [{ marked: 20 }]);
  const closed = await gate('helper', 8);
  const raw = watch(await here.responses.create(inBackground('go', { stream: true })));
  const helper = here.responses.stream(inBackground());
  const strict = watch(helper);
  await closed.reached(2);
  await raw.until('response.output_text.delta');
  await strict.until('response.output_text.delta');
  const how = [raw.ended, helper.finalResponse()].map((end) => end.then(() => 'a clean end', () => 'a failure'));
  await restartApi(0);
  assert.deepEqual(await Promise.all(how), ['a failure', 'a failure'], 'a clean end would mean that the response is over');
  const { id } = raw.seen[0].response;
  const rest = watch(await there.responses.retrieve(id, { stream: true, starting_after: raw.seen.at(-1).sequence_number }));
  const again = there.responses.stream({ response_id: strict.seen[0].response.id });
  const repeated = watch(again);
  await closed.open();
  const response = obeys([...raw.seen, ...(await rest.ended)]);
  assert.equal(text(response), marks(1, 1, 20));
  await equalsStored(response);
  assert.deepEqual((await repeated.ended).slice(0, strict.seen.length), strict.seen);
  assert.equal((await again.finalResponse()).output_text, marks(1, 1, 20));
});

test('two dozen responses at once keep apart', async () => {
  await script('helper', [{ marked: 25, delayMs: 2 }]);
  const ids = await Promise.all(Array.from({ length: 24 }, async (_, n) => {
    const response = n % 3 === 0
      ? obeys(await all(of(n).responses.create(ask(`go ${n}`, { stream: true }))))
      : bare(await of(n).responses.stream(n % 3 === 1 ? ask(`go ${n}`) : inBackground(`go ${n}`)).finalResponse());
    assert.equal(text(response), marks(1, 1, 25));
    await equalsStored(response);
    return response.id;
  }));
  assert.equal(new Set(ids).size, 24);
});

test('a create whose reply is lost is tried again by the package, and makes one response', async () => {
  await script('helper', [{ marked: 4, delayMs: 5 }]);
  const stream = true;
  for (const asking of [inBackground('one'), inBackground('two', { stream }), ask('three', { stream }), ask('four')]) {
    const runs = await countRuns();
    const before = (await asked('helper')).length;
    const fetch = counting(1, isCreate);
    const created = await client(0, { fetch, maxRetries: 2 }).responses.create(asking);
    const { id } = asking.stream ? obeys(await all(created)) : created;
    assert.equal(fetch.count, 2);
    const response = await over(id, 1);
    assert.equal(text(response), marks(1, 1, 4));
    assert.equal(await runs(), 1, `${asking.input}: one run`);
    assert.equal((await asked('helper')).length - before, 1);
  }
});

test('two equal creates that are no retries are two responses', async () => {
  await script('helper', [{ marked: 2 }]);
  const [one, two] = await Promise.all([here, there].map((api) => api.responses.create(inBackground('same'))));
  assert.notEqual(one.id, two.id);
  await Promise.all([over(one.id), over(two.id)]);
});

test('one key makes one response, together, again and after its end, and belongs to one body', async () => {
  await script('helper', [{ marked: 6 }]);
  const closed = await gate('helper', 3);
  const runs = await countRuns();
  const keyed = (api, asking, key = 'k1') => api.responses.create(asking, { headers: { 'Idempotency-Key': key } });
  const asking = inBackground('go', { metadata: { a: 'b' } });
  const responses = await Promise.all([0, 1, 2, 3].map((n) => keyed(of(n), asking)));
  const [{ id }] = responses;
  await closed.reached();
  responses.push(await keyed(there, asking));
  await closed.open();
  const finished = await over(id);
  responses.push(await keyed(here, asking));
  assert.deepEqual(responses.map((response) => response.id), Array(6).fill(id));
  assert.equal(await runs(), 1);
  const fetch = counting();
  const other = keyed(client(0, { fetch, maxRetries: 2 }), inBackground('another'));
  await assert.rejects(other, ({ status }) => status >= 400 && status < 500);
  assert.equal(fetch.count, 1, 'and it is not tried again');
  await equalsStored(finished);
  const streaming = ask('go', { stream: true });
  const streams = await Promise.all([here, there].map((api) => all(keyed(api, streaming, 'k2'))));
  assert.deepEqual(streams[0], streams[1]);
  obeys(streams[0]);
});

test('a cancel whose reply is lost has happened, and is tried again', async () => {
  await script('helper', [{ marked: 30 }]);
  const closed = await gate('helper', 5);
  const [tried, left] = await Promise.all([0, 1].map((n) => of(n).responses.create(inBackground())));
  await closed.reached(2);
  const fetch = counting(1, isCancel);
  const cancelled = await client(0, { fetch, maxRetries: 2 }).responses.cancel(tried.id);
  assert.equal(cancelled.id, tried.id);
  assert.equal(fetch.count, 2);
  const lost = client(1, { fetch: counting(1, isCancel) }).responses.cancel(left.id);
  await assert.rejects(lost, OpenAI.APIConnectionError);
  for (const { id } of [tried, left]) {
    const response = await over(id, 1);
    assert.equal(response.status, 'cancelled');
    assert.deepEqual(obeys(await replay(id)), response);
  }
  await closed.open();
});
