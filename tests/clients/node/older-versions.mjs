// Pages on older versions of the AI SDK, which check every chunk against a schema of their own.

import assert from 'node:assert/strict';
import test from 'node:test';
import * as five from 'ai5';
import * as six from 'ai6';
import { apis, gate, headers, marks, replaceWorkers, script } from './world.mjs';
import { stop, text, user } from './pages.mjs';

for (const [version, sdk] of Object.entries({ five, six })) {
  const transport = (api) => new sdk.DefaultChatTransport({ api: `${apis[api]}/api/chat`, headers, body: { agent: 'helper' } });
  const send = (chatId, api = 0) =>
    transport(api).sendMessages({ chatId, messages: [user('m1', 'go')], trigger: 'submit-message' });
  // The message that the SDK makes of a stream, and the types of its chunks.
  const read = async (stream) => {
    const [own, others] = stream.tee();
    let message;
    const reading = (async () => {
      for await (const next of sdk.readUIMessageStream({ stream: own })) message = next;
    })();
    const types = [];
    for await (const { type } of others) types.push(type);
    await reading;
    return { message, types };
  };

  test(`version ${version} accepts a whole answer, live and replayed`, async () => {
    const calls = [['look', { op: 'x' }], ['look', { wrong: 1 }]];
    await script('helper', [{ marked: 3, reasoning: ['Hm. '], calls }, { marked: 20 }]);
    const closed = await gate('helper', 10);
    const live = read(await send(`whole ${version}`));
    await closed.reached();
    const resumed = read(await transport(1).reconnectToStream({ chatId: `whole ${version}` }));
    await closed.open();
    for (const { message, types } of await Promise.all([live, resumed])) {
      assert.equal(text(message), marks(1, 1, 3) + marks(1, 2, 20));
      const states = message.parts.filter(({ type }) => type === 'dynamic-tool').map(({ state }) => state);
      assert.deepEqual(states, ['output-available', 'output-error']);
      assert.equal(types.at(-1), 'finish');
    }
    assert.equal(await transport(0).reconnectToStream({ chatId: `whole ${version}` }), null);
  });

  test(`version ${version} accepts every end`, async () => {
    const ends = { stop: { marked: 2 }, length: { marked: 2, finishReason: 'length' }, error: { status: 400 } };
    for (const [end, turn] of Object.entries(ends)) {
      await script('helper', [turn]);
      const stream = await send(`${end} ${version}`);
      const types = [];
      for await (const { type } of stream) types.push(type);
      assert.deepEqual(types.slice(-2), [end === 'error' ? 'error' : 'finish-step', 'finish']);
    }
    await script('helper', [{ marked: 8 }]);
    const closed = await gate('helper', 4);
    const stopped = read(await send(`stopped ${version}`));
    await closed.reached();
    await stop(`stopped ${version}`, 1);
    assert.deepEqual((await stopped).types.slice(-2), ['abort', 'finish']);
    await closed.open();

    const last = await gate('helper', 8);
    const whole = read(await send(`stopped at its end ${version}`));
    await last.reached();
    await stop(`stopped at its end ${version}`, 1);
    await last.open();
    assert.deepEqual((await whole).types.slice(-2), ['abort', 'finish']);
  });

  test(`version ${version} accepts a step that is done over`, async () => {
    await script('helper', [{ marked: 12 }]);
    const closed = await gate('helper', 6);
    const watching = read(await send(`redone ${version}`));
    await closed.reached();
    await read((await transport(1).reconnectToStream({ chatId: `redone ${version}` })).pipeThrough(first(3)));
    await replaceWorkers();
    await closed.reached(2);
    await closed.open();
    const { message } = await watching;
    assert.ok(text(message).endsWith(marks(2, 1, 12)));
  });
}

// So many chunks, and then no more.
function first(count) {
  return new TransformStream({
    transform(chunk, controller) {
      controller.enqueue(chunk);
      if (--count === 0) controller.terminate();
    },
  });
}
