import { useChat } from '@ai-sdk/react';
import { DefaultChatTransport, generateId } from 'ai';
import { useEffect, useState } from 'react';
import { createRoot } from 'react-dom/client';
import { Message } from './message.jsx';

const agent = 'demo';

// The chat goes by the name in the address: whoever opens it, on whatever device, sees the same.
const address = new URL(location.href);
if (!address.searchParams.has('chat')) {
  address.searchParams.set('chat', generateId());
  history.replaceState(null, '', address);
}
const id = address.searchParams.get('chat');
const api = '/api/chat';
const here = `${api}/${encodeURIComponent(id)}`;

async function load() {
  for (;;) {
    const response = await fetch(here).catch(() => null);
    if (response?.ok) return response.json();
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

function Page() {
  const [loaded, setLoaded] = useState();
  // After a lost connection everything begins anew, as after a reload: the messages first, then what is under way.
  const [opened, setOpened] = useState(0);
  const draft = useState('');
  useEffect(() => {
    load().then((chat) => setLoaded({ ...chat, opened }));
  }, [opened]);
  const lost = opened !== loaded?.opened;
  return (
    <>
      <header>
        <b>Longhaul</b>
        {lost && <span role="status">Connecting…</span>}
        <a href="/">New chat</a>
      </header>
      {loaded && (
        <Chat key={loaded.opened} {...loaded} lost={lost} reopen={() => setOpened(loaded.opened + 1)} draft={draft} />
      )}
    </>
  );
}

function Chat({ messages: stored, activeRunId, lost, reopen, draft }) {
  const { messages, sendMessage, status, error } = useChat({
    id,
    messages: stored,
    resume: true,
    // An answer that has begun and was not told its end has lost its connection.
    onFinish: ({ isError, message }) => isError && message.metadata && !message.metadata.status && reopen(),
    transport: new DefaultChatTransport({
      api,
      // The server has the history.
      prepareSendMessagesRequest: ({ id, messages, trigger }) => ({
        body: { id, trigger, message: messages.at(-1), agent },
      }),
      // The run that the stored messages are without, even if it has ended since they were loaded.
      prepareReconnectToStreamRequest: ({ id }) => ({ api: `${api}/${encodeURIComponent(activeRunId ?? id)}/stream` }),
    }),
  });
  const busy = lost || status === 'submitted' || status === 'streaming';
  const last = messages.at(-1);
  return (
    <>
      <main>
        <div>
          {messages.length === 0 && <Welcome />}
          {messages.map((message) => (
            <Message key={message.id} message={message} live={busy && message === last} />
          ))}
          {status === 'submitted' && last?.role === 'user' && <p className="waiting" aria-label="Waiting" />}
          {error && !lost && (
            <p className="error" role="alert">
              {error.message || 'That did not work.'}
              {last?.role === 'user' && <button onClick={() => sendMessage()}>Try again</button>}
            </p>
          )}
        </div>
      </main>
      <Composer
        draft={draft}
        busy={busy}
        send={(text) => sendMessage({ text })}
        stop={() => fetch(`${here}/stop`, { method: 'POST' })}
      />
    </>
  );
}

function Welcome() {
  return (
    <section className="welcome">
      <h1>Say something, then reload.</h1>
      <p>
        The answer is written whether anybody watches or not. Close the tab in mid-sentence and come back to this address:
        it will all be here, or still going on.
      </p>
    </section>
  );
}

function Composer({ draft: [text, setText], busy, send, stop }) {
  const submit = (event) => {
    event.preventDefault();
    if (busy || !text.trim()) return;
    send(text);
    setText('');
  };
  return (
    <form onSubmit={submit}>
      <textarea
        autoFocus
        rows={1}
        value={text}
        placeholder="Message"
        aria-label="Message"
        onChange={(event) => setText(event.target.value)}
        onKeyDown={(event) => event.key === 'Enter' && !event.shiftKey && !event.nativeEvent.isComposing && submit(event)}
      />
      {busy ? (
        <button type="button" aria-label="Stop" onClick={stop}>
          <svg viewBox="0 0 16 16"><rect x="4" y="4" width="8" height="8" rx="1.5" fill="currentColor" /></svg>
        </button>
      ) : (
        <button aria-label="Send" disabled={!text.trim()}>
          <svg viewBox="0 0 16 16"><path d="M8 13V3.5M3.5 7.5 8 3l4.5 4.5" /></svg>
        </button>
      )}
    </form>
  );
}

createRoot(document.getElementById('root')).render(<Page />);
