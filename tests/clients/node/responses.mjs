// The openai package against the Responses API, in good weather.

import assert from 'node:assert/strict';
import test from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import OpenAI from 'openai';
import { zodTextFormat } from 'openai/helpers/zod';
import { z } from 'zod';
import { apis, asked, cutting, dice, gate, headers, marks, script, tool } from './world.mjs';
import {
  all, ask, bare, client, equalsStored, here, inBackground, isOver, isWhole, kinds, obeys, of, over, replay, said, text, there,
  watch,
} from './openai.mjs';

const withTool = [
  { marked: 3, reasoning: ['Let ', 'me ', 'look.'], calls: [['look', { op: 'weather' }]] },
  { marked: 20 },
];

const question = {
  type: 'function', name: 'answer', description: 'Answers.', strict: false,
  parameters: { type: 'object', properties: { q: { type: 'number' } }, required: ['q'] },
};
const calling = [{ marked: 2, calls: [['answer', { q: 1 }]] }, { marked: 4 }];
const outputOf = ({ call_id }, output = '42') => ({ type: 'function_call_output', call_id, output });

test('a response that is waited for is whole, and the stored one', async () => {
  await script('helper', [{ marked: 5 }]);
  const asking = ask('one', { metadata: { a: 'b' }, temperature: 0.5, instructions: 'Be quick.', user: 'u' });
  const { data: response, request_id: requestId } = await here.responses.create(asking).withResponse();
  isWhole(response);
  assert.equal(response.status, 'completed');
  assert.equal(response.output_text, marks(1, 1, 5));
  assert.deepEqual(kinds(response), ['message']);
  assert.deepEqual(response.output[0].content, [{ type: 'output_text', text: marks(1, 1, 5), annotations: [], logprobs: [] }]);
  assert.deepEqual([response.model, response.metadata, response.temperature, response.instructions, response.background],
    ['helper', { a: 'b' }, 0.5, 'Be quick.', false]);
  assert.deepEqual([response.error, response.incomplete_details, response.previous_response_id], [null, null, null]);
  assert.deepEqual([response.usage.input_tokens, response.usage.output_tokens], [10, 5]);
  assert.ok(requestId);
  await equalsStored(response);
  obeys(await replay(response.id));
  const include = ['message.output_text.logprobs', 'reasoning.encrypted_content'];
  assert.deepEqual(bare(await there.responses.retrieve(response.id, { include })), bare(response));
});

test('a model of a provider is asked by its own name', async () => {
  const response = await here.responses.create(ask('one', { model: 'fake/tokens-4' }));
  assert.equal(response.output_text, marks(1, 1, 4));
  assert.equal(response.model, 'fake/tokens-4');
});

test('a whole stream with reasoning and a tool of the server obeys every rule, and ends with what is stored', async () => {
  await script('helper', withTool);
  const events = await all(here.responses.create(ask('What is the weather?', { stream: true })));
  const response = obeys(events);
  assert.equal(response.status, 'completed');
  assert.deepEqual(kinds(response), ['reasoning', 'message', 'mcp_call', 'message']);
  const [reasoning, , look] = response.output;
  assert.deepEqual(reasoning.summary, [{ type: 'summary_text', text: 'Let me look.' }]);
  const { name, status, error } = look;
  assert.deepEqual([name, JSON.parse(look.arguments), status, error], ['look', { op: 'weather' }, 'completed', null]);
  assert.ok(typeof look.output === 'string' && look.output.length > 0);
  assert.equal(text(response), marks(1, 1, 3) + marks(1, 2, 20));
  await equalsStored(response);
  for (const api of [0, 1]) assert.deepEqual(await replay(response.id, {}, api), events);
});

test('the frames and headers of a stream are what clients and proxies need', async () => {
  await script('helper', [{ marked: 6 }]);
  const closed = await gate('helper', 3);
  const response = await fetch(`${apis[0]}/v1/responses`, {
    method: 'POST',
    headers: { ...headers, 'content-type': 'application/json' },
    body: JSON.stringify(ask('go', { stream: true })),
  });
  assert.match(response.headers.get('content-type'), /^text\/event-stream/);
  assert.equal(response.headers.get('cache-control'), 'no-cache, no-transform');
  assert.equal(response.headers.get('x-accel-buffering'), 'no');
  assert.equal(response.headers.get('content-encoding'), null);
  assert.ok(response.headers.get('x-request-id'));
  await closed.reached();
  await sleep(2500); // A heartbeat is due each second.
  await closed.open();
  const body = await response.text();
  assert.match(body, /^:/m, 'there were heartbeats');
  assert.doesNotMatch(body, /^(id|retry):/m);
  const frames = body.replaceAll(/^:.*\n/gm, '').split('\n\n');
  assert.deepEqual(frames.splice(-2), ['data: [DONE]', '']);
  const events = frames.map((frame) => {
    const [, type, data] = /^event: (\S+)\ndata: (.*)$/.exec(frame);
    assert.equal(JSON.parse(data).type, type);
    return JSON.parse(data);
  });
  obeys(events);
});

test('the strict helper puts together what is stored', async () => {
  await script('helper', withTool);
  const stream = here.responses.stream(ask());
  const deltas = [];
  stream.on('response.output_text.delta', ({ delta, snapshot }) => {
    deltas.push(delta);
    assert.ok(snapshot.endsWith(delta));
  });
  const events = await all(stream);
  const response = await stream.finalResponse();
  assert.equal(response.output_text, marks(1, 1, 3) + marks(1, 2, 20));
  assert.equal(deltas.join(''), response.output_text);
  assert.equal(events.at(-1).type, 'response.completed');
  await equalsStored(response);
});

test('the strict helper replays a live response and a finished one, from any event on', async () => {
  await script('helper', withTool);
  const closed = await gate('helper', 12);
  const { id } = await here.responses.create(inBackground());
  const live = watch(there.responses.stream({ response_id: id }));
  await closed.reached();
  await live.until('response.mcp_call.completed');
  await closed.open();
  const events = await live.ended;
  const stored = await over(id);
  assert.deepEqual(events.map((event) => event.sequence_number), events.map((_, n) => n));
  for (const starting_after of [undefined, 0, 7, events.length - 2, events.length - 1]) {
    const stream = here.responses.stream({ response_id: id, starting_after });
    assert.deepEqual(await all(stream), events.slice((starting_after ?? -1) + 1), `after ${starting_after}`);
    assert.deepEqual(bare(await stream.finalResponse()), stored);
  }
});

test('a response in the background is there at once and finished later', async () => {
  await script('helper', [{ marked: 8 }]);
  const closed = await gate('helper', 0);
  const response = await here.responses.create(inBackground());
  isWhole(response);
  assert.deepEqual([response.status, response.output, response.usage, response.background], ['queued', [], null, true]);
  await closed.reached();
  const under = await there.responses.retrieve(response.id);
  isWhole(under);
  assert.deepEqual([under.status, under.output, under.created_at], ['in_progress', [], response.created_at]);
  await closed.open();
  const finished = await over(response.id, 1);
  assert.deepEqual([finished.status, text(finished)], ['completed', marks(1, 1, 8)]);
  obeys(await replay(response.id));
});

test('a stream goes on behind each of its events, without a gap or a repeat', async () => {
  await script('helper', withTool);
  const { id } = await here.responses.create(inBackground());
  await over(id);
  const events = await replay(id);
  obeys(events);
  for (const [n] of events.entries()) {
    assert.deepEqual(await replay(id, { starting_after: n }, n), events.slice(n + 1), `after ${n}`);
  }
  for (const wrong of [-1, 1.5, 'x']) {
    await assert.rejects(replay(id, { starting_after: wrong }), OpenAI.BadRequestError, `after ${wrong}`);
  }
  const beyond = await replay(id, { starting_after: 100_000 }).catch((error) => error);
  assert.ok(beyond instanceof OpenAI.BadRequestError || beyond.length === 0, 'it does not hang');
});

test('a reader that leaves after every event sees all of them, while the response is made', async () => {
  await script('helper', [{ ...withTool[0], delayMs: 5 }, { marked: 30, delayMs: 5 }]);
  const seen = [];
  let stream = await here.responses.create(inBackground('go', { stream: true }));
  do {
    for await (const event of stream) {
      assert.equal(event.sequence_number, seen.length);
      seen.push(event);
      break;
    }
    const behind = { stream: true, starting_after: seen.at(-1).sequence_number };
    stream = await of(seen.length).responses.retrieve(seen[0].response.id, behind);
  } while (!seen.at(-1).response || !isOver(seen.at(-1).response));
  assert.deepEqual(await all(stream), []);
  await equalsStored(obeys(seen));
});

test('streams that are cut at random bytes, again and again, make up whole ones', async () => {
  await script('helper', [{ marked: 3, calls: [['look', { op: 'x' }]] }, { marked: 60, delayMs: 3 }]);
  const random = dice(1);
  let cuts = 0;
  const fetch = cutting(() => (cuts++, 1 + Math.floor(random() * 6_000)));
  const shaky = [0, 1].map((api) => client(api, { fetch }));
  for (let round = 0; round < 6; round++) {
    const { id } = await here.responses.create(inBackground());
    const seen = [];
    while (!seen.at(-1)?.response || !isOver(seen.at(-1).response)) {
      const last = seen.at(-1)?.sequence_number;
      try {
        const query = { stream: true, ...(last === undefined ? {} : { starting_after: last }) };
        const stream = await shaky[cuts % 2].responses.retrieve(id, query);
        for await (const event of stream) {
          assert.equal(event.sequence_number, seen.length);
          seen.push(event);
        }
      } catch (error) {
        if (!/cut/.test(error)) throw error;
      }
    }
    const response = obeys(seen);
    assert.equal(text(response), marks(1, 1, 3) + marks(1, 2, 60));
    await equalsStored(response);
  }
  assert.ok(cuts > 18, `${cuts} cuts in 6 rounds`);
});

test('a creating stream that is left does not end its response', async () => {
  await script('helper', [{ marked: 10 }]);
  const closed = await gate('helper', 4);
  const stream = await here.responses.create(ask('go', { stream: true }));
  let id;
  for await (const event of stream) {
    id ??= event.response.id;
    if (event.type === 'response.output_text.delta') break;
  }
  await closed.reached();
  await closed.open();
  const response = await over(id, 1);
  assert.deepEqual([response.status, text(response)], ['completed', marks(1, 1, 10)]);
});

test('two tails and a late joiner see the same, the first one leaving or not', async () => {
  await script('helper', [{ marked: 12 }]);
  const closed = await gate('helper', 6);
  const first = await here.responses.create(inBackground('go', { stream: true }));
  let id;
  for await (const event of first) {
    id ??= event.response.id;
    if (event.type === 'response.output_text.delta') break;
  }
  await closed.reached();
  const tails = await Promise.all([0, 1].map((api) => of(api).responses.retrieve(id, { stream: true })));
  const [one, two] = tails.map(watch);
  await one.until('response.output_text.delta');
  await closed.open();
  assert.deepEqual(await one.ended, await two.ended);
  await equalsStored(obeys(one.seen));
  assert.deepEqual(await replay(id), one.seen, 'and one who comes when it is over');
});

test('a cancel from elsewhere ends a response for all who watch it, once', async () => {
  await script('helper', [{ marked: 30 }]);
  const closed = await gate('helper', 5);
  const watching = watch(await here.responses.create(inBackground('go', { stream: true })));
  await closed.reached();
  await watching.until('response.output_text.delta');
  const { id } = watching.seen[0].response;
  const begun = Date.now();
  const cancelled = await there.responses.cancel(id);
  assert.equal(cancelled.id, id);
  assert.ok(['cancelled', 'in_progress'].includes(cancelled.status), cancelled.status);
  const events = await watching.ended;
  assert.ok(Date.now() - begun < 10_000, 'it does not wait for the model');
  const response = obeys(events);
  assert.equal(response.status, 'cancelled');
  assert.deepEqual(response.incomplete_details, { reason: 'cancelled' });
  const torn = events.filter((event) => event.type === 'response.output_item.done');
  assert.deepEqual(torn.map(({ item }) => item.status), ['incomplete']);
  assert.ok(marks(1, 1, 5).startsWith(torn[0].item.content[0].text));
  await equalsStored(response);
  const again = await Promise.all([0, 1, 2, 3].map((n) => of(n).responses.cancel(id)));
  for (const other of again) assert.deepEqual(bare(other), response, 'once more');
  await closed.open();
  assert.deepEqual(await replay(id, {}, 1), events);
});

test('a cancel through the strict helper is an end without an error', async () => {
  await script('helper', [{ marked: 30 }]);
  const closed = await gate('helper', 5);
  const stream = here.responses.stream(inBackground());
  const watching = watch(stream);
  await closed.reached();
  await watching.until('response.output_text.delta');
  await here.responses.cancel(watching.seen[0].response.id);
  const response = await stream.finalResponse();
  assert.equal(response.status, 'cancelled');
  await equalsStored(response);
  await closed.open();
});

test('cancels at once and together make one end', async () => {
  await script('helper', [{ marked: 30, delayMs: 20 }]);
  for (let round = 0; round < 5; round++) {
    const { id } = await here.responses.create(inBackground());
    const cancelled = await Promise.all([0, 1, 2, 3, 4, 5].map((n) => of(n).responses.cancel(id)));
    assert.ok(cancelled.every((response) => response.id === id));
    const response = await over(id);
    assert.equal(response.status, 'cancelled');
    assert.deepEqual(obeys(await replay(id)), response);
  }
});

test('a cancel that comes too late changes nothing', async () => {
  await script('helper', [{ marked: 3 }]);
  const response = await here.responses.create(ask());
  const finished = await here.responses.create(inBackground());
  for (const one of [bare(response), await over(finished.id)]) {
    assert.deepEqual(bare(await there.responses.cancel(one.id)), one);
    await equalsStored(one);
  }
});

test('a response that is deleted is gone for every call, and one under way is ended', async () => {
  await script('helper', [{ marked: 6 }]);
  const { id: finished } = await here.responses.create(ask());
  const closed = await gate('helper', 2);
  const { id: running } = await here.responses.create(inBackground());
  await closed.reached();
  for (const id of [finished, running]) {
    await there.responses.delete(id);
    for (const api of [0, 1]) {
      const calls = [
        () => of(api).responses.retrieve(id),
        () => replay(id, {}, api),
        () => of(api).responses.cancel(id),
        () => of(api).responses.inputItems.list(id),
        () => of(api).responses.delete(id),
      ];
      for (const call of calls) await assert.rejects(call(), OpenAI.NotFoundError);
    }
  }
  await closed.open();
});

test('a function of the client is called, and its output goes on with the response', async () => {
  await script('helper', calling);
  const first = await here.responses.create(ask('How much?', { tools: [question] }));
  assert.equal(first.status, 'completed');
  assert.deepEqual(kinds(first), ['message', 'function_call']);
  const call = first.output[1];
  assert.deepEqual([call.name, JSON.parse(call.arguments), call.status], ['answer', { q: 1 }, 'completed']);
  assert.deepEqual(first.tools.map(({ name }) => name), ['answer']);
  obeys(await replay(first.id));
  const second = await there.responses.create({
    model: 'helper', previous_response_id: first.id, input: [outputOf(call)], tools: [question],
  });
  assert.deepEqual([second.status, second.previous_response_id], ['completed', first.id]);
  assert.equal(second.output_text, marks(1, 2, 4));
  await equalsStored(second);
  const requests = await asked('helper');
  assert.deepEqual(said(requests.at(-1)), [['user', 'How much?'], ['assistant', marks(1, 1, 2), 'answer'], ['tool', '42']]);
  for (const request of requests.slice(-2)) {
    const { function: known } = request.tools.find(({ function: { name } }) => name === 'answer');
    assert.deepEqual([known.description, known.parameters], [question.description, question.parameters]);
  }
});

test('the strict helper makes the same round trip, with two calls at a time', async () => {
  await script('helper', [{ marked: 2, calls: [['answer', { q: 1 }], ['answer', { q: 2 }]] }, { marked: 4 }]);
  const stream = here.responses.stream(ask('How much?', { tools: [question] }));
  const pieces = new Map();
  stream.on('response.function_call_arguments.delta', ({ item_id: id, delta, snapshot }) => {
    pieces.set(id, (pieces.get(id) ?? '') + delta);
    assert.equal(snapshot, pieces.get(id));
  });
  const first = await stream.finalResponse();
  await equalsStored(first);
  const calls = first.output.filter(({ type }) => type === 'function_call');
  assert.deepEqual(calls.map((call) => pieces.get(call.id)), ['{"q":1}', '{"q":2}']);
  const input = calls.map((call, n) => outputOf(call, [{ type: 'input_text', text: `${n}` }]));
  const asking = { model: 'helper', previous_response_id: first.id, input, tools: [question] };
  const second = await there.responses.stream(asking).finalResponse();
  assert.equal(second.output_text, marks(1, 2, 4));
  await equalsStored(second);
  assert.deepEqual(said((await asked('helper')).at(-1)), [
    ['user', 'How much?'], ['assistant', marks(1, 1, 2), 'answer', 'answer'], ['tool', '0'], ['tool', '1'],
  ]);
});

test('a step may call a tool of the server and a function of the client', async () => {
  await script('helper', [{ marked: 2, calls: [['look', { op: 'x' }], ['answer', { q: 1 }]] }, { marked: 4 }]);
  const events = await all(here.responses.create(ask('go', { tools: [question], stream: true })));
  const first = obeys(events);
  assert.deepEqual(kinds(first).sort(), ['function_call', 'mcp_call', 'message']);
  const [look, call] = ['mcp_call', 'function_call'].map((type) => first.output.find((item) => item.type === type));
  assert.equal(look.status, 'completed');
  const second = await here.responses.create(
    { model: 'helper', previous_response_id: first.id, input: [outputOf(call)], tools: [question] });
  assert.equal(second.output_text, marks(1, 2, 4));
  assert.deepEqual(said((await asked('helper')).at(-1)).map(([role]) => role), ['user', 'assistant', 'tool', 'tool']);
});

test('a client that keeps the conversation itself sends all of it', async () => {
  await script('helper', calling);
  const input = [{ role: 'user', content: 'How much?' }];
  const first = await here.responses.create({ model: 'helper', input, tools: [question] });
  input.push(...bare(first).output, outputOf(first.output[1]));
  const second = await here.responses.create({ model: 'helper', input, tools: [question] });
  assert.equal(second.output_text, marks(1, 2, 4));
  assert.deepEqual(said((await asked('helper')).at(-1)),
    [['user', 'How much?'], ['assistant', marks(1, 1, 2), 'answer'], ['tool', '42']]);
});

test('a tool of the server that fails is a failed call, and the response goes on', async () => {
  await script('helper', withTool);
  await tool('look', 400);
  const response = obeys(await all(here.responses.create(ask('go', { stream: true }))));
  await tool('look');
  const look = response.output.find(({ type }) => type === 'mcp_call');
  assert.equal(look.status, 'failed');
  assert.ok(look.error && look.output === null);
  assert.equal(response.status, 'completed');
});

test('an answer is parsed as its format says', async () => {
  const format = zodTextFormat(z.object({ n: z.number() }), 'number');
  await script('helper', [{ text: ['{"n"', ':', ' 7}'] }]);
  const parsed = await here.responses.parse(ask('go', { text: { format } }));
  assert.deepEqual(parsed.output_parsed, { n: 7 });
  assert.equal(parsed.text.format.name, 'number');
  await equalsStored(parsed);
  const streamed = await there.responses.stream(ask('go', { text: { format } })).finalResponse();
  assert.deepEqual(streamed.output_parsed, { n: 7 });
  await equalsStored(streamed);
  const { response_format: wanted } = (await asked('helper')).at(-1);
  assert.equal(wanted.type, 'json_schema');
  assert.deepEqual([wanted.json_schema.name, wanted.json_schema.schema], ['number', format.schema]);
});

test('an answer that the model cut off is incomplete', async () => {
  await script('helper', [{ marked: 3, finishReason: 'length' }]);
  const waited = await here.responses.create(ask());
  const streamed = await here.responses.stream(ask()).finalResponse();
  for (const response of [waited, streamed]) {
    assert.equal(response.status, 'incomplete');
    assert.deepEqual(response.incomplete_details, { reason: 'max_output_tokens' });
    assert.equal(response.output_text, marks(1, 1, 3));
    await equalsStored(response);
    obeys(await replay(response.id));
  }
});

test('a response that fails says why', async () => {
  await script('helper', [{ marked: 3, status: 400 }]);
  const background = await here.responses.create(inBackground());
  const events = await all(here.responses.create(ask('go', { stream: true })));
  const streamed = await here.responses.stream(ask()).finalResponse();
  for (const response of [await over(background.id), obeys(events), streamed]) {
    assert.equal(response.status, 'failed');
    assert.ok(response.error.code);
    assert.match(response.error.message, /400/);
    await equalsStored(response);
    obeys(await replay(response.id, {}, 1));
  }
});
