// `useChat` in a real browser: type, watch, reload in mid-sentence, stop, lose the worker.

import assert from 'node:assert/strict';
import { createServer, request } from 'node:http';
import test, { after, before } from 'node:test';
import { build } from 'esbuild';
import { apis, gate, headers, marks, replaceWorkers, script } from './world.mjs';
import { PATIENCE, launch, picture } from './chromium.mjs';
import { equalsStored, load } from './pages.mjs';

const HTML = `<!doctype html><meta charset="utf-8"><title>Chat</title>
<style>
  body { font: 15px/1.45 system-ui, sans-serif; max-width: 42rem; margin: 2rem auto; color: #222 }
  section { border-left: 3px solid #bbb; padding: 0 .8rem; margin: 1rem 0 } section.assistant { border-color: #2a6fdb }
  p { margin: .3rem 0 } .reasoning { color: #777; font-style: italic } .tool { font-family: monospace; color: #2a6fdb }
  form { display: flex; gap: .5rem; margin-top: 1.5rem } input { flex: 1 } output { color: #777 }
</style><div id="root"></div><script type="module" src="/page.js"></script>`;

let server;
let browser;
let origin;

// A site of its own that hands the calls of its page on, as a developer's server does, with the key that no page has.
before(async () => {
  const { outputFiles } = await build({
    entryPoints: [new URL('page.jsx', import.meta.url).pathname],
    bundle: true, write: false, format: 'esm', jsx: 'automatic', define: { 'process.env.NODE_ENV': '"production"' },
  });
  server = createServer((incoming, outgoing) => {
    if (incoming.url === '/page.js') {
      outgoing.setHeader('content-type', 'text/javascript').end(outputFiles[0].contents);
    } else if (incoming.url.startsWith('/api/')) {
      const { host, connection, ...rest } = incoming.headers;
      const options = { method: incoming.method, headers: { ...rest, ...headers } };
      const upstream = request(apis[0] + incoming.url, options, (answer) => {
        outgoing.writeHead(answer.statusCode, answer.headers);
        answer.on('error', () => outgoing.destroy()).pipe(outgoing);
      });
      upstream.on('error', () => outgoing.destroy());
      outgoing.on('close', () => upstream.destroy());
      incoming.pipe(upstream);
    } else {
      outgoing.setHeader('content-type', 'text/html').end(HTML);
    }
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  origin = `http://127.0.0.1:${server.address().port}`;
  browser = await launch();
});

after(async () => {
  await browser?.close();
  server?.closeAllConnections();
  server?.close();
});

async function open(chat) {
  const tab = await browser.newPage();
  const faults = [];
  tab.on('pageerror', (error) => faults.push(error.message));
  await tab.setViewport({ width: 800, height: 420 });
  await tab.goto(`${origin}/?chat=${encodeURIComponent(chat)}`);
  await tab.waitForSelector('input');
  return {
    faults,
    say: async (text) => {
      await tab.bringToFront();
      await tab.type('input', text);
      await tab.keyboard.press('Enter');
    },
    answer: () => tab.$$eval('section.assistant:last-of-type .text', (parts) => parts.map((part) => part.textContent)),
    shows: (text) => tab.waitForFunction((text) => document.body.textContent.includes(text), PATIENCE, text),
    is: (status) => tab.waitForFunction(
      (status) => document.querySelector('output')?.textContent === status, PATIENCE, status),
    sections: () => tab.$$eval('section', (sections) => sections.length),
    reload: async () => {
      await tab.reload();
      await tab.waitForSelector('input');
    },
    stop: async () => {
      await tab.bringToFront();
      await tab.click('#stop');
    },
    picture: (name) => picture(tab, name),
    close: () => tab.close(),
  };
}

test('a reload in the middle of a sentence shows it from its beginning and goes on', async () => {
  await script('helper', [{ marked: 3, reasoning: ['Hm.'], calls: [['look', { op: 'x' }]] }, { marked: 24 }]);
  const closed = await gate('helper', 12);
  const tab = await open('reload');
  await tab.is('ready');
  await tab.say('Tell me everything.');
  await closed.reached();
  await tab.shows('a1.s2.11');
  await tab.is('streaming');
  await tab.picture('before-the-reload');
  await tab.reload();
  await tab.shows('a1.s2.11');
  assert.equal(await tab.sections(), 2, 'one question, one answer');
  await tab.picture('after-the-reload');
  await closed.open();
  await tab.shows('a1.s2.23');
  await tab.is('ready');
  assert.deepEqual(await tab.answer(), [marks(1, 1, 3), marks(1, 2, 24)]);
  await tab.reload();
  await tab.shows('a1.s2.23');
  assert.deepEqual(await tab.answer(), [marks(1, 1, 3), marks(1, 2, 24)], 'and when it is over');
  assert.deepEqual(tab.faults, []);
  await tab.close();
});

test('two tabs of one chat see the same answer, and the stop button of one ends it for both', async () => {
  await script('helper', [{ marked: 20 }]);
  const closed = await gate('helper', 6);
  const [one, two] = [await open('tabs'), await open('tabs')];
  await one.say('Go.');
  await closed.reached();
  await one.shows('a1.s1.5');
  await two.reload();
  await two.shows('a1.s1.5');
  await two.stop();
  await Promise.all([one.is('ready'), two.is('ready')]);
  await closed.open();
  assert.deepEqual(await one.answer(), await two.answer());
  await one.say('Once more.');
  await one.shows('a1.s1.19');
  await one.is('ready');
  assert.deepEqual([one.faults, two.faults], [[], []]);
  await Promise.all([one.close(), two.close()]);
});

test('a worker that is killed costs the page nothing but a torn sentence', async () => {
  await script('helper', [{ marked: 16 }]);
  const closed = await gate('helper', 8);
  const tab = await open('killed');
  await tab.say('Go on whatever happens.');
  await closed.reached();
  await tab.shows('a1.s1.7');
  await replaceWorkers();
  await closed.reached(2);
  await tab.shows('a2.s1.7');
  await tab.picture('after-the-worker-was-killed');
  await closed.open();
  await tab.shows('a2.s1.15');
  await tab.is('ready');
  assert.deepEqual((await tab.answer()).at(-1), marks(2, 1, 16));
  const { messages } = await load('killed');
  await equalsStored('killed', messages.at(-1));
  assert.deepEqual(tab.faults, []);
  await tab.close();
});
