// Pages that are told to drop the text of a step that is done over.

import assert from 'node:assert/strict';
import test from 'node:test';
import { gate, marks, replaceWorkers, script } from './world.mjs';
import { equalsStored, page, read, submit, text, user } from './pages.mjs';

test('what a torn step said is gone from the message and from what is stored', async () => {
  await script('helper', [{ marked: 2, calls: [['look', { op: 'x' }]] }, { marked: 12 }]);
  const closed = await gate('helper', 6);
  const watching = read(await submit(page(0), 'redone', user('m1', 'go')));
  await closed.reached();
  const late = await page(1).reconnectToStream({ chatId: 'redone' });
  await replaceWorkers();
  await closed.reached(2);
  await closed.open();
  for (const { message } of [await watching, await read(late)]) {
    assert.equal(text(message), marks(1, 1, 2) + marks(2, 2, 12));
    await equalsStored('redone', message);
  }
});
