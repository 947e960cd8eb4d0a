//! Connections, and how they end.
//!
//! A call runs in a task of its own from the moment in which its head has been read, so that a client who goes away
//! cancels nothing: a submission that has arrived is admitted, and no transaction is dropped in the middle.
//!
//! When the process is told to stop: nothing new is accepted, `/readyz` answers 503, open tails are reset so that
//! their clients come back elsewhere, and calls under way are answered.

use std::{io, time::Duration};

use axum::{Router, http::Request};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;

use crate::{router, stall::Impatient, state::AppState};

/// How long a connection may take to send a request's head, or stay idle between two.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);
/// How long a client may leave what it is sent unread.
const STALL_TIMEOUT: Duration = Duration::from_mins(1);
/// What one connection may buffer in either direction: what a slow reader costs at most.
const MAX_BUFFER: usize = 64 * 1024;
/// How long calls under way may take once the process is told to stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves HTTP/1.1 until `shutdown`, then until what is under way has been answered.
pub async fn serve(listener: TcpListener, state: AppState, shutdown: CancellationToken) -> io::Result<()> {
    serve_patiently(listener, state, shutdown, STALL_TIMEOUT).await
}

/// The same with `patience` for those who do not read.
pub(crate) async fn serve_patiently(
    listener: TcpListener,
    state: AppState,
    shutdown: CancellationToken,
    patience: Duration,
) -> io::Result<()> {
    let app = router(state.clone());
    let connections = TaskTracker::new();
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(MAX_BUFFER);
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                connections.spawn(attend(
                    http.clone(),
                    stream,
                    app.clone(),
                    state.tasks.clone(),
                    shutdown.clone(),
                    patience,
                ));
            }
            Err(error) if is_about_one_connection(&error) => {}
            Err(error) => {
                // Out of file descriptors, most likely: those that are open will end.
                tracing::warn!(error = %error, "cannot accept connections");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
    drop(listener);
    state.begin_drain();
    state.tasks.close();
    connections.close();
    let drained = async {
        connections.wait().await;
        state.tasks.wait().await;
    };
    if tokio::time::timeout(DRAIN_TIMEOUT, drained).await.is_err() {
        tracing::warn!(connections = connections.len(), "some calls were still under way at the end");
    }
    Ok(())
}

async fn attend(
    http: http1::Builder,
    stream: TcpStream,
    app: Router,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    patience: Duration,
) {
    // Tokens are small and wanted at once.
    let _ = stream.set_nodelay(true);
    // Begun when called, not when first polled: a connection whose other end is gone is never polled again.
    let service = service_fn(move |request: Request<Incoming>| {
        let handled = tasks.spawn(app.clone().oneshot(request));
        async move {
            match handled.await {
                Ok(Ok(response)) => Ok(response),
                Ok(Err(never)) => match never {},
                Err(stopped) => Err(io::Error::other(stopped)),
            }
        }
    });
    let mut connection =
        std::pin::pin!(http.serve_connection(TokioIo::new(Impatient::new(stream, patience)), service));
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error = %error, "a connection broke");
    }
}

fn is_about_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
    )
}
