// The page of the browser tests: `useChat`, its transport, a stop button. What it knows at a reload is the chat's name.

import { useChat } from '@ai-sdk/react';
import { DefaultChatTransport } from 'ai';
import { useEffect, useState } from 'react';
import { createRoot } from 'react-dom/client';

const api = '/api/chat';
const chat = new URLSearchParams(location.search).get('chat');

function Part({ part }) {
  if (part.type === 'text') return <p className="text">{part.text}</p>;
  if (part.type === 'reasoning') return <p className="reasoning">{part.text}</p>;
  if (part.type === 'dynamic-tool') return <p className="tool">{part.toolName}: {part.state}</p>;
  return null;
}

function Chat({ stored, activeRun }) {
  const [input, setInput] = useState('');
  const { messages, sendMessage, status, error } = useChat({
    id: chat,
    messages: stored,
    resume: true,
    transport: new DefaultChatTransport({
      api,
      // The server has the history.
      prepareSendMessagesRequest: ({ id, messages, trigger }) => ({
        body: { id, trigger, message: messages.at(-1), agent: 'helper' },
      }),
      // By the run that the stored messages are without, even if it has ended meanwhile.
      prepareReconnectToStreamRequest: ({ id }) => ({ api: `${api}/${encodeURIComponent(activeRun ?? id)}/stream` }),
    }),
  });
  const submit = (event) => {
    event.preventDefault();
    sendMessage({ text: input });
    setInput('');
  };
  return (
    <main>
      {messages.map((message) => (
        <section key={message.id} className={message.role}>
          <b>{message.role}</b>
          {message.parts.map((part, n) => <Part key={n} part={part} />)}
        </section>
      ))}
      <form onSubmit={submit}>
        <input value={input} onChange={(event) => setInput(event.target.value)} placeholder="Say something" />
        <button>Send</button>
        <button type="button" id="stop" onClick={() => fetch(`${api}/${encodeURIComponent(chat)}/stop`, { method: 'POST' })}>
          Stop
        </button>
        <output>{error ? error.message : status}</output>
      </form>
    </main>
  );
}

function Page() {
  const [loaded, setLoaded] = useState();
  useEffect(() => {
    fetch(`${api}/${encodeURIComponent(chat)}`).then((r) => r.json()).then(setLoaded);
  }, []);
  return loaded ? <Chat stored={loaded.messages} activeRun={loaded.activeRunId} /> : null;
}

createRoot(document.getElementById('root')).render(<Page />);
