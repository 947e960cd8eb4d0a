const ENDS = { aborted: 'Stopped', failed: 'Failed' };

export function Message({ message, live }) {
  if (message.role === 'user') {
    return <section className="user">{message.parts.map((part) => part.text)}</section>;
  }
  const steps = stepsOf(message.parts);
  const end = ENDS[message.metadata?.status];
  return (
    <section className="answer" aria-busy={live}>
      {steps.map((parts, n) => <Step key={n} parts={parts} torn={isTorn(parts) && n < steps.length - 1} />)}
      {end && <p className="end">{end}</p>}
    </section>
  );
}

function stepsOf(parts) {
  const steps = [];
  for (const part of parts) {
    if (part.type === 'step-start') steps.push([]);
    else steps.at(-1)?.push(part);
  }
  return steps;
}

// Only calls make a run go on after a step. One that another follows without them broke off and was done over.
const isTorn = (parts) => !parts.some((part) => part.type === 'dynamic-tool');

function Step({ parts, torn }) {
  if (!torn) return parts.map((part, n) => <Part key={n} part={part} />);
  return (
    <details className="torn">
      <summary>Broke off, and was done over</summary>
      {parts.map((part, n) => <p key={n} className={part.type}>{part.text}</p>)}
    </details>
  );
}

function Part({ part }) {
  if (part.type === 'text') return <p className="text">{part.text}</p>;
  if (part.type === 'reasoning') {
    const thinks = part.state === 'streaming';
    return (
      <details className="reasoning" open={thinks}>
        <summary>{thinks ? 'Thinking' : 'Thought'}</summary>
        <p>{part.text}</p>
      </details>
    );
  }
  if (part.type === 'dynamic-tool') {
    return (
      <p className="tool" data-state={part.state}>
        <b>{part.toolName}</b> {part.errorText ?? part.output}
      </p>
    );
  }
  return null;
}
