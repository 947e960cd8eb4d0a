// The openai package: responses that go on with what was said, and calls that are refused.

import assert from 'node:assert/strict';
import test from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import OpenAI from 'openai';
import { asked, gate, marks, script } from './world.mjs';
import { all, ask, bare, client, counting, equalsStored, here, inBackground, over, said, there, told } from './openai.mjs';

const withTool = [
  { marked: 3, reasoning: ['Let ', 'me ', 'look.'], calls: [['look', { op: 'weather' }]] },
  { marked: 20 },
];

test('a response goes on with another one, and branches do not see each other', async () => {
  await script('helper', [{ marked: 2 }]);
  const first = await here.responses.create(ask('one', { instructions: 'Only in verse.' }));
  const after = (input) => there.responses.create(ask(input, { previous_response_id: first.id }));
  const second = await after('two');
  await after('three');
  await here.responses.create(ask('four', { previous_response_id: second.id }));
  const requests = (await asked('helper')).slice(-4);
  const begin = [['user', 'one'], ['assistant', marks(1, 1, 2)]];
  const longer = [...begin, ['user', 'two'], ['assistant', marks(1, 1, 2)], ['user', 'four']];
  assert.deepEqual(requests.map(said), [begin.slice(0, 1), [...begin, ['user', 'two']], [...begin, ['user', 'three']], longer]);
  assert.deepEqual(requests.map((request) => /in verse/.test(told(request))), [true, false, false, false]);
  const unknown = here.responses.create(ask('go', { previous_response_id: `resp_${'0'.repeat(32)}` }));
  await assert.rejects(unknown, ({ status }) => status === 400 || status === 404);
});

test('what is still under way is waited for or refused as a beginning, never taken in half', async () => {
  await script('helper', [{ marked: 6 }]);
  const closed = await gate('helper', 3);
  const first = await here.responses.create(inBackground('one'));
  await closed.reached();
  const second = there.responses.create(ask('two', { previous_response_id: first.id })).catch((error) => error);
  await sleep(300);
  await closed.open();
  const response = await second;
  if (response instanceof OpenAI.BadRequestError) return;
  assert.equal(response.status, 'completed');
  assert.deepEqual(said((await asked('helper')).at(-1)), [['user', 'one'], ['assistant', marks(1, 1, 6)], ['user', 'two']]);
});

test('the input of a response is listed, page by page', async () => {
  await script('helper', [{ marked: 2 }]);
  const { id } = await here.responses.create(ask('one'));
  const { data: [only], has_more: more } = await here.responses.inputItems.list(id);
  const { id: itemId, ...item } = only;
  assert.ok(itemId);
  const content = [{ type: 'input_text', text: 'one' }];
  assert.deepEqual(item, { type: 'message', role: 'user', status: 'completed', content });
  assert.equal(more, false);
  const input = ['a', 'b', 'c', 'd', 'e'].map((content) => ({ role: 'user', content }));
  const several = await here.responses.create(ask(input));
  const listed = async (query) => {
    const items = await all(there.responses.inputItems.list(several.id, query));
    return items.map(({ content }) => content[0].text);
  };
  assert.deepEqual(await listed({ limit: 2, order: 'asc' }), ['a', 'b', 'c', 'd', 'e']);
  assert.deepEqual(await listed({ limit: 2 }), ['e', 'd', 'c', 'b', 'a']);
  assert.deepEqual(said((await asked('helper')).at(-1)).at(-1), ['user', 'e']);
});

test('a conversation has two turns, and its items come page by page', async () => {
  await script('helper', withTool);
  const conversation = await here.conversations.create({ metadata: { a: 'b' } });
  assert.match(conversation.id, /^conv_[0-9a-f]{32}$/);
  assert.deepEqual([conversation.object, conversation.metadata], ['conversation', { a: 'b' }]);
  const first = await here.responses.create(ask('one', { conversation: conversation.id }));
  assert.deepEqual(first.conversation, { id: conversation.id });
  const second = await there.responses.stream(ask('two', { conversation: { id: conversation.id } })).finalResponse();
  await equalsStored(second);
  const roles = said((await asked('helper')).at(-2)).map(([role]) => role);
  assert.deepEqual(roles, ['user', 'assistant', 'tool', 'assistant', 'user']);
  const items = (query) => all(there.conversations.items.list(conversation.id, query));
  const answer = ['reasoning', 'message', 'mcp_call', 'message'];
  const forth = await items({ limit: 3, order: 'asc' });
  assert.deepEqual(forth.map(({ type }) => type), ['message', ...answer, 'message', ...answer]);
  assert.deepEqual(forth.slice(6), bare(second).output);
  const asking = [forth[0], forth[5]].map(({ role, content }) => [role, content[0].text]);
  assert.deepEqual(asking, [['user', 'one'], ['user', 'two']]);
  assert.equal(new Set(forth.map(({ id }) => id)).size, 10);
  assert.deepEqual(await items({ limit: 4 }), forth.toReversed());
  assert.equal((await here.conversations.items.list(conversation.id)).data.length, 10);
  assert.deepEqual(await there.conversations.retrieve(conversation.id), conversation);
  const both = here.responses.create(ask('go', { conversation: conversation.id, previous_response_id: first.id }));
  await assert.rejects(both, OpenAI.BadRequestError);
  await here.conversations.delete(conversation.id);
  await assert.rejects(there.conversations.retrieve(conversation.id), OpenAI.NotFoundError);
  await assert.rejects(items({}), OpenAI.NotFoundError);
});

test('what is refused is refused in its own class and words, and not tried again', async () => {
  await script('helper', [{ marked: 6 }]);
  const fetch = counting();
  const trying = client(0, { fetch, maxRetries: 2 });
  const unknown = `resp_${'0'.repeat(32)}`;
  const { id: conversation } = await here.conversations.create();
  const closed = await gate('helper', 3);
  const busy = await here.responses.create(inBackground('go', { conversation }));
  await closed.reached();
  const many = Object.fromEntries(Array.from({ length: 17 }, (_, n) => [`k${n}`, 'v']));
  const { BadRequestError, NotFoundError, AuthenticationError, ConflictError } = OpenAI;
  const refused = [
    [BadRequestError, () => trying.responses.create(ask('go', { background: true, store: false }))],
    [BadRequestError, () => trying.responses.create(ask('go', { metadata: many }))],
    [BadRequestError, () => trying.responses.create({ model: 'helper' })],
    [BadRequestError, () => trying.responses.create(ask([{ type: 'function_call_output', call_id: 'nobody', output: '1' }]))],
    [BadRequestError, () => trying.responses.create(ask('go', { stream: true, temperature: 'hot' }))],
    [BadRequestError, () => trying.responses.retrieve(busy.id, { stream: true, starting_after: -1 })],
    [NotFoundError, () => trying.responses.retrieve(unknown)],
    [NotFoundError, () => trying.responses.retrieve('x')],
    [NotFoundError, () => trying.responses.retrieve(unknown, { stream: true })],
    [NotFoundError, () => trying.responses.cancel(unknown)],
    [NotFoundError, () => trying.responses.delete(unknown)],
    [NotFoundError, () => trying.conversations.retrieve(`conv_${'0'.repeat(32)}`)],
    [AuthenticationError, () => client(0, { fetch, maxRetries: 2, apiKey: 'lh_wrong' }).responses.create(ask())],
    [AuthenticationError, () => client(0, { fetch, maxRetries: 2, apiKey: 'lh_wrong' }).responses.retrieve(busy.id)],
    [ConflictError, () => trying.responses.create(ask('and?', { conversation }))],
  ];
  for (const [kind, call] of refused) {
    const before = fetch.count;
    await assert.rejects(call(), (error) => {
      assert.ok(error instanceof kind, `${kind.name} for ${call}: ${error}`);
      assert.deepEqual(Object.keys(error.error).sort(), ['code', 'message', 'param', 'type']);
      assert.ok(error.error.message && error.error.type && error.requestID);
      return true;
    });
    assert.equal(fetch.count - before, 1, `${call}`);
  }
  const nobody = trying.responses.create(ask('go', { model: 'nobody' }));
  await assert.rejects(nobody, ({ status, message }) => (status === 400 || status === 404) && /nobody/.test(message));
  await closed.open();
  await over(busy.id);
});
