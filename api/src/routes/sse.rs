//! A tail on the wire: replay, then live, heartbeats against silence, and a clean end only behind the run's end.
//!
//! Whatever else ends a tail (this process ends, the log cannot be read) resets the connection: clients take a clean
//! end for success and a broken one for a reason to come back.

use std::{io, pin::pin, time::Duration};

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use longhaul_shared::{
    domain::{ids::Seq, run::Run},
    store::LogCursor,
    tail::{Slice, TailError},
};
use tokio::time::Instant;

use crate::{state::AppState, views::native::HEARTBEAT};

const SLICES_AT_ONCE: usize = 32;

/// How a tail writes a log for its client.
pub(crate) trait View: Send + 'static {
    /// Goes out before the first event.
    const OPENING: &'static str;
    /// Goes out behind the last.
    const CLOSING: &'static str;
    /// Goes out against silence.
    const SIGN_OF_LIFE: &'static str = HEARTBEAT;

    /// What the next events add, which may be nothing.
    fn render(&mut self, slice: &Slice) -> Bytes;
}

/// The run's events behind `from`, which is not beyond its log.
pub(crate) fn respond(state: &AppState, run: &Run, from: Seq, view: impl View) -> Response {
    stream(body(state, run, from, view))
}

/// The same without the headers of server-sent events.
pub(crate) fn body(state: &AppState, run: &Run, from: Seq, view: impl View) -> Body {
    let cursor = LogCursor { workspace_id: run.workspace_id, run_id: run.id, after: from };
    if run.status.is_terminal() {
        Body::from_stream(frames(state.clone(), state.tails.replay(cursor), view))
    } else {
        Body::from_stream(frames(state.clone(), state.tails.follow(cursor), view))
    }
}

/// An answer that breaks off at once.
pub(crate) fn reset() -> Response {
    let broken = futures::stream::once(async { Err::<Bytes, _>(broken_off("the service is unavailable")) });
    stream(Body::from_stream(broken))
}

fn stream(body: Body) -> Response {
    let kind = (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    ([kind], UNBUFFERED, body).into_response()
}

/// Headers that keep what is between here and the client from holding anything back.
pub(crate) const UNBUFFERED: [(HeaderName, HeaderValue); 2] = [
    // A proxy that compresses holds back what it has; one that buffers too.
    (header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform")),
    (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
];

fn frames<V: View>(
    state: AppState,
    tail: impl Stream<Item = Result<Slice, TailError>> + Send + 'static,
    mut view: V,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let heartbeat = state.settings.heartbeat;
    async_stream::stream! {
        if !V::OPENING.is_empty() {
            yield Ok(Bytes::from_static(V::OPENING.as_bytes()));
        }
        let draining = state.draining.clone();
        let mut draining = pin!(draining.cancelled_owned());
        let mut silence = pin!(tokio::time::sleep(heartbeat));
        // What is there at once goes out at once.
        let mut tail = pin!(tail.ready_chunks(SLICES_AT_ONCE));
        loop {
            tokio::select! {
                biased;
                () = &mut draining => {
                    yield Err(broken_off("the server is shutting down"));
                    return;
                }
                next = tail.next() => {
                    let Some(slices) = next else {
                        if !V::CLOSING.is_empty() {
                            yield Ok(Bytes::from_static(V::CLOSING.as_bytes()));
                        }
                        return;
                    };
                    let (bytes, error) = render(&mut view, slices);
                    if !bytes.is_empty() {
                        yield Ok(bytes);
                        silence.as_mut().reset(Instant::now() + heartbeat);
                    }
                    if let Some(error) = error {
                        tracing::warn!(error = %error, "a tail was reset");
                        yield Err(broken_off("the log cannot be read"));
                        return;
                    }
                },
                () = &mut silence => {
                    yield Ok(Bytes::from_static(V::SIGN_OF_LIFE.as_bytes()));
                    silence.as_mut().reset(Instant::now() + heartbeat.max(Duration::from_millis(1)));
                }
            }
        }
    }
}

/// Everything up to the first error.
fn render(view: &mut impl View, slices: Vec<Result<Slice, TailError>>) -> (Bytes, Option<TailError>) {
    let (mut first, mut more) = (Bytes::new(), BytesMut::new());
    for slice in slices {
        let bytes = match slice {
            Ok(slice) => view.render(&slice),
            Err(error) => return (joined(first, &more), Some(error)),
        };
        if first.is_empty() {
            first = bytes;
        } else {
            more.extend_from_slice(&bytes);
        }
    }
    (joined(first, &more), None)
}

/// A live tail gets one slice at a time, whose bytes it shares with all others: they are not copied.
fn joined(first: Bytes, more: &BytesMut) -> Bytes {
    if more.is_empty() {
        return first;
    }
    let mut whole = BytesMut::with_capacity(first.len() + more.len());
    whole.extend_from_slice(&first);
    whole.extend_from_slice(more);
    whole.freeze()
}

fn broken_off(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, why)
}
