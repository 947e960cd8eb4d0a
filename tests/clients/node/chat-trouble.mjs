// The transports of the AI SDK when connections are cut and processes die.

import assert from 'node:assert/strict';
import test from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { cutting, dice, gate, marks, replaceWorkers, restartApi, script } from './world.mjs';
import { chunks, equalsStored, load, page, read, submit, text, user, workflowPage } from './pages.mjs';

// The SDK takes a refused connection for final; a page that tries again does not.
async function persistent(url, init) {
  for (let tries = 0; ; tries++) {
    try {
      return await fetch(url, init);
    } catch (error) {
      if (tries > 100) throw error;
      await sleep(100);
    }
  }
}

test('a page that is cut off at every state of its message resumes to the whole', async () => {
  await script('helper', [{ marked: 3, reasoning: ['Hm. '], calls: [['look', { op: 'x' }]] }, { marked: 16 }]);
  const closed = await gate('helper', 15);
  const first = await submit(page(0), 'cut', user('m1', 'go'));
  await closed.reached();
  const { count } = await read(first, 8);
  assert.equal(count, 8);
  // Up to the first token behind the tool; how many more states there are is a matter of the machine.
  for (let states = 1; states <= 11; states++) {
    const resumed = await page(states % 2).reconnectToStream({ chatId: 'cut' });
    assert.equal((await read(resumed, states)).count, states);
  }
  const last = await page(1).reconnectToStream({ chatId: 'cut' });
  await closed.open();
  const { message } = await read(last);
  assert.equal(text(message), marks(1, 1, 3) + marks(1, 2, 16));
  await equalsStored('cut', message);
});

test('a stream that is cut at random bytes, again and again, arrives without gap or repeat', async () => {
  await script('helper', [{ marked: 3, calls: [['look', { op: 'x' }]] }, { marked: 60, delayMs: 3 }]);
  const noise = console.error;
  console.error = () => {}; // It tells of every cut.
  const random = dice(1);
  let cuts = 0;
  for (let round = 0; round < 8; round++) {
    const fetch = cutting(() => (cuts++, 1 + Math.floor(random() * 400)));
    const options = { chatId: 'unused', messages: [user(`m${round}`, 'go')], trigger: 'submit-message', body: { agent: 'helper' } };
    const { message } = await read(await workflowPage(round % 2, { fetch }).sendMessages(options));
    assert.equal(text(message), marks(1, 1, 3) + marks(1, 2, 60));
  }
  assert.ok(cuts > 24, `${cuts} cuts in 8 rounds`);
  console.error = noise;
});

test('a worker that is killed in the middle of a step tears its text, and the next one begins anew', async () => {
  await script('helper', [{ marked: 12 }]);
  const closed = await gate('helper', 6);
  const watching = read(await submit(page(0), 'killed', user('m1', 'go')));
  await closed.reached();
  // Something of the first attempt has been seen.
  await read(await page(1).reconnectToStream({ chatId: 'killed' }), 3);
  await replaceWorkers();
  await closed.reached(2);
  await closed.open();
  const { message } = await watching;
  const texts = message.parts.filter((part) => part.type === 'text');
  assert.equal(texts.length, 2);
  assert.ok(marks(1, 1, 6).startsWith(texts[0].text), texts[0].text);
  assert.equal(texts[1].text, marks(2, 1, 12));
  assert.ok(texts.every((part) => part.state === 'done'));
  await equalsStored('killed', message);
});

test('an API process that is killed in the middle of a stream is found again, or the other one is', async () => {
  await script('helper', [{ marked: 20 }]);
  const closed = await gate('helper', 8);
  const noise = console.error;
  console.error = () => {};
  const bySdk = workflowPage(0, { fetch: persistent });
  const options = { chatId: 'unused', messages: [user('w1', 'go')], trigger: 'submit-message', body: { agent: 'helper' } };
  const resumedBySdk = read(await bySdk.sendMessages(options));
  resumedBySdk.catch(() => {}); // It is awaited below.
  const torn = await submit(page(0), 'restarted', user('m1', 'go'));
  await closed.reached(2);
  const cut = read(torn).then(() => 'a clean end', () => 'a failure');
  const [, how] = await Promise.all([restartApi(0), cut]);
  assert.equal(how, 'a failure', 'a clean end would mean that the run is over');
  const resumed = await page(1).reconnectToStream({ chatId: 'restarted' });
  await closed.open();
  const { message } = await read(resumed);
  assert.equal(text(message), marks(1, 1, 20));
  await equalsStored('restarted', message);
  assert.equal(text((await resumedBySdk).message), marks(1, 1, 20));
  console.error = noise;
});

test('a page that leaves at once finds its answer when it comes back', async () => {
  await script('helper', [{ marked: 10 }]);
  const stream = await submit(page(0), 'left', user('m1', 'go'));
  await stream.cancel();
  let loaded = await load('left', 1);
  for (let tries = 0; tries < 400 && loaded.activeRunId !== null; tries++) {
    await sleep(50);
    loaded = await load('left', 1);
  }
  assert.equal(text(loaded.messages.at(-1)), marks(1, 1, 10));
  assert.equal((await chunks((await page(1).reconnectToStream({ chatId: 'left' })) ?? [])).length, 0);
});
