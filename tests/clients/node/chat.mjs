// The transports of the AI SDK in good weather.

import assert from 'node:assert/strict';
import test from 'node:test';
import { apis, asked, call, gate, headers, marks, script } from './world.mjs';
import { chatApi, chunks, equalsStored, load, page, read, stop, submit, text, user, workflowPage } from './pages.mjs';

const withTool = [
  { marked: 3, reasoning: ['Let ', 'me ', 'look.'], calls: [['look', { op: 'weather' }]] },
  { marked: 20 },
];

test('a whole answer with reasoning, a tool of the server and two steps equals what is stored', async () => {
  await script('helper', withTool);
  const { message } = await read(await submit(page(), 'whole', user('m1', 'What is the weather?')));
  const kinds = message.parts.map((part) => part.type);
  assert.deepEqual(kinds, ['step-start', 'reasoning', 'text', 'dynamic-tool', 'step-start', 'text']);
  assert.equal(message.parts[1].text, 'Let me look.');
  assert.deepEqual(
    [message.parts[3].state, message.parts[3].toolName, message.parts[3].input, message.parts[3].providerExecuted],
    ['output-available', 'look', { op: 'weather' }, true],
  );
  assert.equal(text(message), marks(1, 1, 3) + marks(1, 2, 20));
  assert.equal(message.metadata.status, 'succeeded');
  for (const api of [0, 1]) await equalsStored('whole', message, api);
  const { messages } = await load('whole');
  assert.deepEqual(messages[0], { id: 'm1', role: 'user', parts: [{ type: 'text', text: 'What is the weather?', state: 'done' }] });
});

test('the headers of a stream are what clients and proxies need', async () => {
  await script('helper', [{ marked: 2 }]);
  const response = await fetch(chatApi(), {
    method: 'POST', headers,
    body: JSON.stringify({ id: 'headers', agent: 'helper', messages: [user('m', 'hi')] }),
  });
  assert.equal(response.headers.get('content-type'), 'text/event-stream');
  assert.equal(response.headers.get('cache-control'), 'no-cache, no-transform');
  assert.equal(response.headers.get('x-accel-buffering'), 'no');
  assert.equal(response.headers.get('x-vercel-ai-ui-message-stream'), 'v1');
  assert.equal(response.headers.get('content-encoding'), null);
  assert.match(response.headers.get('x-workflow-run-id'), /^[0-9a-f-]{36}$/);
  assert.ok((await response.text()).endsWith('data: [DONE]\n\n'));
});

test('what is idle has nothing to resume', async () => {
  for (const chat of ['whole', 'never seen', 'päge / one?', 'nul\u0000', 'x'.repeat(3000)]) {
    assert.equal(await page().reconnectToStream({ chatId: chat }), null);
  }
});

test('a conversation goes on, and the model is given what was said', async () => {
  await script('helper', [{ marked: 2 }]);
  const transport = page();
  await read(await submit(transport, 'long', user('m1', 'one')));
  const { message } = await read(await submit(transport, 'long', user('m2', 'two')));
  await equalsStored('long', message);
  assert.equal((await load('long')).messages.length, 4);
});

test('the same message joins its run, another one is told that the chat is busy', async () => {
  await script('helper', [{ marked: 9 }]);
  const closed = await gate('helper', 4);
  const first = await submit(page(0), 'busy', user('m1', 'go'));
  await closed.reached();
  const second = await submit(page(1), 'busy', user('m1', 'go'));
  await assert.rejects(submit(page(1), 'busy', user('m2', 'and?')), /A run is already active in this chat/);
  await closed.open();
  const [one, two] = await Promise.all([chunks(first), chunks(second)]);
  assert.deepEqual(one, two);
  assert.equal((await call('GET', '/v1/runs?status=failed')).body.data.length, 0);
});

test('two tails and a late joiner see the same, the first one leaving or not', async () => {
  await script('helper', [{ marked: 12 }]);
  const closed = await gate('helper', 6);
  const first = await submit(page(0), 'tails', user('m1', 'go'));
  await closed.reached();
  const left = await read(first, 3);
  assert.equal(left.count, 3);
  const [late, later] = [await page(0).reconnectToStream({ chatId: 'tails' }), await page(1).reconnectToStream({ chatId: 'tails' })];
  assert.equal((await load('tails')).messages.length, 1, 'a resume brings the rest');
  await closed.open();
  const [one, two] = await Promise.all([read(late), read(later)]);
  assert.deepEqual(one.message, two.message);
  assert.equal(text(one.message), marks(1, 1, 12));
  await equalsStored('tails', one.message, 1);
});

test('the stop button of another tab ends the run for all of them, and the chat goes on', async () => {
  await script('helper', [{ marked: 30, delayMs: 5 }]);
  const closed = await gate('helper', 5);
  const watching = await submit(page(0), 'stopped', user('m1', 'go'));
  await closed.reached();
  assert.deepEqual(await stop('stopped', 1), { status: 200, body: { success: true } });
  const seen = await chunks(watching);
  assert.deepEqual(seen.slice(-2).map((chunk) => [chunk.type, chunk.finishReason]), [['abort', undefined], ['finish', 'other']]);
  assert.equal((await stop('stopped')).status, 200, 'once more');
  await closed.open();
  const { message } = await read(await submit(page(), 'stopped', user('m2', 'again')));
  assert.equal(message.metadata.status, 'succeeded');
  await equalsStored('stopped', message);
});

test('an answer that was cut off by the model says so, and what cannot be begun is refused in words', async () => {
  await script('helper', [{ marked: 3, finishReason: 'length' }]);
  const cut = await chunks(await submit(page(), 'length', user('m1', 'go')));
  assert.equal(cut.at(-1).finishReason, 'length');
  const failing = page(0, { body: { agent: 'nobody' } });
  await assert.rejects(submit(failing, 'nobody', user('m1', 'go')), /there is no agent `nobody`/);
});

test('a run that fails is an error and then the end, and a reload shows what was seen', async () => {
  await script('helper', [{ marked: 4, status: 400 }]);
  const seen = await chunks(await submit(page(), 'failed', user('m1', 'go')));
  assert.deepEqual(seen.slice(-2).map(({ type, finishReason }) => [type, finishReason]), [['error', undefined], ['finish', 'error']]);
  assert.match(seen.at(-2).errorText, /400/);
  const { messages } = await load('failed');
  assert.equal(messages.at(-1).metadata.status, 'failed');
  assert.equal(messages.at(-1).id, seen[0].messageId);
});

test('the workflow transport names no chat, and reads a run from any chunk on after its end', async () => {
  await script('helper', withTool);
  let run;
  const transport = workflowPage(0, { onChatSendMessage: (response) => { run = response.headers.get('x-workflow-run-id'); } });
  const whole = await chunks(await transport.sendMessages({
    chatId: 'unused', messages: [user('m1', 'go')], trigger: 'submit-message', body: { agent: 'helper' },
  }));
  assert.equal(whole.at(-1).type, 'finish');
  const from = async (start) => {
    const response = await fetch(`${chatApi(Math.abs(start) % 2)}/${run}/stream?startIndex=${start}`, { headers });
    return (await response.text()).split('\n\n');
  };
  const all = await from(0);
  assert.equal(all.length, whole.length + 2, 'and [DONE], and nothing');
  for (let start = 0; start < whole.length; start++) {
    assert.deepEqual(await from(start), all.slice(start), `from chunk ${start}`);
    assert.deepEqual(await from(start - whole.length), all.slice(start), `${whole.length - start} from the end`);
  }
  // The transport itself begins a part that it comes into the middle of.
  const atPart = whole.findIndex((chunk) => chunk.type === 'tool-input-available');
  for (const initialStartIndex of [atPart, atPart - whole.length]) {
    const rest = await chunks(await workflowPage(1, { initialStartIndex }).reconnectToStream({ chatId: run }));
    assert.deepEqual(rest, whole.slice(atPart));
  }
});

test('another answer stands in for the first one, and an edited message for all that came after it', async () => {
  await script('helper', [{ marked: 3 }]);
  const told = async () => (await asked('helper')).at(-1).messages
    .filter(({ role }) => role === 'user').map(({ content }) => content);
  const first = (await read(await submit(page(0), 'again', user('m1', 'one')))).message;
  const second = (await read(await submit(page(1), 'again', user('m2', 'two')))).message;
  const closed = await gate('helper', 1);
  const again = {
    chatId: 'again', messages: [user('m1', 'one'), first, user('m2', 'two')], trigger: 'regenerate-message', messageId: second.id,
  };
  const regenerating = await page(0).sendMessages(again);
  await closed.reached();
  const repeated = await page(1).sendMessages(again);
  await closed.open();
  const third = (await read(regenerating)).message;
  assert.equal((await read(repeated)).message.id, third.id, 'a repeat joins it');
  assert.ok(third.id !== second.id && text(third) === marks(1, 1, 3));
  assert.deepEqual(await told(), ['one', 'two']);
  const stored = async (api) => (await load('again', api)).messages.map(({ id }) => id);
  assert.deepEqual(await stored(1), ['m1', first.id, 'm2', third.id]);
  await equalsStored('again', third);

  const edited = { chatId: 'again', messages: [user('m1', 'ONE')], trigger: 'submit-message', messageId: 'm1' };
  const fourth = (await read(await page(1).sendMessages(edited))).message;
  assert.deepEqual(await told(), ['ONE']);
  assert.deepEqual(await stored(0), ['m1', fourth.id]);
  await read(await submit(page(0), 'again', user('m3', 'and?')));
  assert.deepEqual(await told(), ['ONE', 'and?']);
  assert.equal((await load('again')).messages[0].parts[0].text, 'ONE');
});

test('two dozen chats at once keep apart', async () => {
  await script('helper', [{ marked: 25, delayMs: 2 }]);
  await Promise.all(Array.from({ length: 24 }, async (_, n) => {
    const { message } = await read(await submit(page(n % 2), `one of many ${n}`, user(`m${n}`, `go ${n}`)));
    assert.equal(text(message), marks(1, 1, 25));
    await equalsStored(`one of many ${n}`, message, (n + 1) % 2);
  }));
});

test('replays are the same bytes at both API processes', async () => {
  const { body } = await call('GET', '/v1/runs?limit=20');
  for (const { runId } of body.data) {
    const [one, two] = await Promise.all(apis.map(async (api) =>
      (await fetch(`${api}/api/chat/${runId}/stream?startIndex=0`, { headers })).text()));
    assert.equal(one, two);
    assert.ok(one.length > 100);
  }
});
