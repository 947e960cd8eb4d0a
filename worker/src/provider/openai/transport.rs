//! One request to the provider and the frames of its answer.
//!
//! Whatever is not a stream becomes an error of ours with its status, its `Retry-After` and the beginning of
//! its body. The body is read only as fast as it is asked for; dropping [`Frames`] closes the connection.

use std::{
    error::Error,
    time::{Duration, SystemTime},
};

use longhaul_shared::{domain::text::one_line, net_guard::Refused};
use reqwest::{
    RequestBuilder, Response,
    header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, RETRY_AFTER},
};

use super::{
    answer::EXCERPT,
    chunk,
    sse::{Decoder, Frame},
};
use crate::{provider::ModelError, redact::Redactor};

/// How much of a body that is not a stream is looked at.
const SAMPLE: usize = 16 * 1024;

/// How long such a body may take.
const SAMPLE_TIME: Duration = Duration::from_secs(10);

/// Limits of a body, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct BodyLimits {
    /// Of a single event.
    pub(super) frame: usize,
    /// Of everything, comments and padding included.
    pub(super) total: usize,
}

/// Sends the request and reads the head of the answer.
pub(super) async fn open(
    request: RequestBuilder,
    limits: BodyLimits,
    redactor: &Redactor,
    now: SystemTime,
) -> Result<Frames, ModelError> {
    let response = request.send().await.map_err(|error| connection_error(&error, redactor))?;
    let status = response.status();
    if !status.is_success() {
        let retry_after = retry_after(response.headers(), now);
        let message =
            if status.is_redirection() { String::new() } else { excerpt(&sample(response).await, redactor) };
        return Err(ModelError::Status { status: status.as_u16(), message, retry_after });
    }
    if !is_event_stream(response.headers()) {
        let body = sample(response).await;
        return Err(match serde_json::from_str::<serde_json::Value>(&body) {
            Ok(body) if body.get("error").is_some_and(|error| !error.is_null()) => {
                let (status, message) = chunk::error_status(&body);
                ModelError::Status { status, message: excerpt(&message, redactor), retry_after: None }
            }
            _ => ModelError::Malformed { sample: excerpt(&body, redactor) },
        });
    }
    Ok(Frames {
        response,
        limits,
        decoder: Decoder::default(),
        received: 0,
        opening: Some(String::new()),
        ended: false,
    })
}

/// The server-sent events of a body.
pub(super) struct Frames {
    response: Response,
    limits: BodyLimits,
    decoder: Decoder,
    received: usize,
    /// The body's first bytes, until an event shows that it is what it claims to be.
    opening: Option<String>,
    ended: bool,
}

impl Frames {
    /// The next frame; `None` at the end of the body. May be dropped at any await and called again.
    pub(super) async fn next(&mut self) -> Result<Option<Frame>, ModelError> {
        loop {
            if let Some(frame) = self.decoder.next() {
                if matches!(frame, Frame::Event { .. }) {
                    self.opening = None;
                }
                return Ok(Some(frame));
            }
            if self.ended {
                return Ok(None);
            }
            let Some(bytes) = self.response.chunk().await.map_err(|_| ModelError::Broken)? else {
                self.ended = true;
                return Ok(self.decoder.finish());
            };
            self.received = self.received.saturating_add(bytes.len());
            if self.received > self.limits.total {
                return Err(ModelError::OutputTooLarge { limit: self.limits.total, of: "bytes on the wire" });
            }
            if let Some(opening) = &mut self.opening
                && opening.len() < EXCERPT
            {
                opening.push_str(&String::from_utf8_lossy(&bytes[..bytes.len().min(EXCERPT)]));
            }
            self.decoder.push(&bytes);
            if self.decoder.held() > self.limits.frame + bytes.len() {
                return Err(ModelError::OutputTooLarge {
                    limit: self.limits.frame,
                    of: "bytes in one event",
                });
            }
        }
    }

    /// The body is over: an event that came last may have been cut.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Why a body without a finish reason has none: it was cut, or it never was a stream of events.
    pub(super) fn incomplete(&self, redactor: &Redactor) -> ModelError {
        match &self.opening {
            Some(opening) if !opening.trim().is_empty() => {
                ModelError::Malformed { sample: excerpt(opening, redactor) }
            }
            _ => ModelError::Truncated,
        }
    }

    /// Reads to the end of the body, so that its connection can be used again.
    pub(super) async fn drain(&mut self) {
        while let Ok(Some(_)) = self.next().await {}
    }
}

fn excerpt(text: &str, redactor: &Redactor) -> String {
    one_line(&redactor.redact(text), EXCERPT)
}

/// The beginning of a body, as far as it comes in time.
async fn sample(mut response: Response) -> String {
    let mut body = vec![];
    let read = async {
        while let Ok(Some(bytes)) = response.chunk().await {
            body.extend_from_slice(&bytes[..bytes.len().min(SAMPLE - body.len())]);
            if body.len() == SAMPLE {
                break;
            }
        }
    };
    // What came until then is the sample.
    let _ = tokio::time::timeout(SAMPLE_TIME, read).await;
    String::from_utf8_lossy(&body).into_owned()
}

/// A missing type is taken for a stream; a wrong one is not.
fn is_event_stream(headers: &HeaderMap) -> bool {
    let is = |name, accepted: fn(&str) -> bool| {
        headers.get(name).is_none_or(|value| value.to_str().is_ok_and(accepted))
    };
    is(CONTENT_TYPE, |kind| kind.trim_start().to_ascii_lowercase().starts_with("text/event-stream"))
        && is(CONTENT_ENCODING, |encoding| encoding.eq_ignore_ascii_case("identity"))
}

/// `Retry-After` as seconds or as a date, or `retry-after-ms`. What is neither, or in the past, is not there.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let seconds = |text: &str, scale: f64| {
        // Longer than any wait that anybody would honour.
        let number = text.parse::<f64>().ok().filter(|number| *number >= 0.0)?;
        Some(Duration::from_secs_f64((number / scale).min(1e9)))
    };
    text("retry-after-ms").and_then(|text| seconds(text, 1000.0)).or_else(|| {
        let text = text(RETRY_AFTER.as_str())?;
        seconds(text, 1.0).or_else(|| httpdate::parse_http_date(text).ok()?.duration_since(now).ok())
    })
}

/// The innermost cause, which names neither the URL nor the key.
fn connection_error(error: &reqwest::Error, redactor: &Redactor) -> ModelError {
    if let Some(refused) = Refused::find(error) {
        return ModelError::Refused(refused);
    }
    if error.is_builder() {
        return ModelError::NotConfigured("the request could not be built".to_owned());
    }
    if error.is_timeout() {
        return ModelError::Connect("the connection timed out".to_owned());
    }
    let mut cause: &dyn Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    ModelError::Connect(excerpt(&cause.to_string(), redactor))
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    #[test]
    fn retry_after_is_read_as_seconds_milliseconds_or_date() {
        let now = httpdate::parse_http_date("Wed, 21 Oct 2015 07:28:00 GMT").unwrap();
        let read = |name: &'static str, value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_static(value));
            retry_after(&headers, now)
        };
        assert_eq!(read("retry-after", "7"), Some(Duration::from_secs(7)));
        assert_eq!(read("retry-after", " 0.5 "), Some(Duration::from_millis(500)));
        assert_eq!(read("retry-after", "Wed, 21 Oct 2015 07:28:30 GMT"), Some(Duration::from_secs(30)));
        assert_eq!(read("retry-after-ms", "250"), Some(Duration::from_millis(250)));
        assert_eq!(read("retry-after", "864000"), Some(Duration::from_hours(240)));
        for nonsense in ["-5", "soon", "", "NaN", "Wed, 21 Oct 2015 07:27:00 GMT"] {
            assert_eq!(read("retry-after", nonsense), None, "{nonsense}");
        }
        assert!(read("retry-after", "1e300").is_some());
    }
}
