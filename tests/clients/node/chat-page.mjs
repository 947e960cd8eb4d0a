// The example of a page, as its one command serves it.

import assert from 'node:assert/strict';
import test, { after, before } from 'node:test';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { PATIENCE, launch, picture } from './chromium.mjs';
import { apis, restartApi } from './world.mjs';

const root = process.env.LONGHAUL_TEST_CHAT_PAGE;
const { createServer } = await import(pathToFileURL(join(root, 'node_modules/vite/dist/node/index.js')));

let server;
let browser;
let origin;

before(async () => {
  process.env.LONGHAUL_URL = apis[0];
  delete process.env.LONGHAUL_API_KEY;
  server = await createServer({ root });
  await server.listen();
  [origin] = server.resolvedUrls.local;
  browser = await launch();
});

after(async () => {
  await browser?.close();
  await server?.close();
});

const load = async (chat) => (await fetch(`${origin}api/chat/${chat}`)).json();
const texts = (message) => message.parts.filter((part) => part.type === 'text').map((part) => part.text);

test('a chat outlives a reload and a crash in mid-sentence, and is stopped by its button', async () => {
  const tab = await browser.newPage();
  const faults = [];
  tab.on('pageerror', (error) => faults.push(error.message));
  await tab.setViewport({ width: 900, height: 760 });
  const shows = (text) => tab.waitForFunction(
    (text) => document.querySelector('.answer:last-of-type')?.innerText.includes(text), PATIENCE, text);
  const answer = () => tab.$$eval('.answer:last-of-type .text', (parts) => parts.map((part) => part.textContent));
  const say = async (text) => {
    await tab.type('textarea', text);
    await tab.keyboard.press('Enter');
    await tab.waitForSelector('[aria-label=Stop]', PATIENCE);
  };
  const isOver = () => tab.waitForSelector('[aria-label=Send]', PATIENCE);

  await tab.goto(origin);
  await isOver();
  await picture(tab, 'page-1-empty');
  const chat = new URL(tab.url()).searchParams.get('chat');
  await say('compare three queues');
  await shows('Let me look at the clock');
  await shows('What you are reading now was written twice.');
  await tab.reload();
  await shows('Let me look at the clock');
  await shows('Broke off, and was done over');
  await picture(tab, 'page-2-reloaded');

  await shows('without a word of why');
  await restartApi(0);
  await shows('You wrote: “compare three queues”');
  await picture(tab, 'page-3-crashed');
  await shows('it will all still be here.');
  await isOver();
  const [question, told] = (await load(chat)).messages;
  assert.deepEqual(texts(question), ['compare three queues']);
  assert.deepEqual(await answer(), texts(told), 'the torn ones too');
  await tab.reload();
  await shows('it will all still be here.');
  assert.deepEqual(await answer(), texts(told));

  await say('once more');
  await shows('Let me look at the clock');
  await tab.click('[aria-label=Stop]');
  await shows('Stopped');
  await isOver();
  await picture(tab, 'page-4-stopped');
  const { messages, activeRunId } = await load(chat);
  assert.equal(activeRunId, null);
  assert.deepEqual([messages.length, messages.at(-1).metadata.status], [4, 'aborted']);
  assert.deepEqual(await answer(), texts(messages.at(-1)));
  await tab.reload();
  await shows('Stopped');
  assert.deepEqual(faults, []);
});
