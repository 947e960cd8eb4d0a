//! The HTTP client. What may safely be sent again is sent again, for a moment: every request here is either a read,
//! a stop, or carries an idempotency key.

pub(crate) mod error;
#[cfg(test)]
pub(crate) mod fake_server;
pub(crate) mod key;
pub(crate) mod tail;
pub(crate) mod view;

use std::time::Duration;

use longhaul_shared::domain::retry::Backoff;
use reqwest::{
    Method, RequestBuilder, Response, StatusCode,
    header::{AUTHORIZATION, HeaderMap, HeaderValue, RETRY_AFTER},
    redirect,
};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::{Instant, sleep};
use url::{Host, Url};

use self::{
    error::{ClientError, Problem},
    view::{Listed, Seen},
};
use crate::exit::{Exit, Failure};

/// For a server that refuses connections: it may be restarting, or not be there at all.
const PATIENCE_UNREACHED: Duration = Duration::from_secs(2);
/// For a request that may have arrived: giving up would leave its outcome unknown.
const PATIENCE_SENT: Duration = Duration::from_secs(20);
const RETRY: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
const CONNECT: Duration = Duration::from_secs(5);
/// Silence after which a connection counts as dead. Streams say something every 15 s.
const SILENCE: Duration = Duration::from_mins(1);
const LARGEST_PROBLEM: usize = 64 << 10;

/// One server, and the key for it.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: Url,
}

impl Client {
    /// What a command needs to go to the same server, if that is not where it goes by itself.
    pub(crate) fn elsewhere(&self) -> String {
        let url = self.base.as_str().trim_end_matches('/');
        if url == crate::DEFAULT_URL { String::new() } else { format!(" --url {url}") }
    }

    pub(crate) fn new(base: Url, key: Option<&str>) -> Result<Self, Failure> {
        if !matches!(base.scheme(), "http" | "https") || base.cannot_be_a_base() {
            return Err(Failure::usage(format!("{base} is not an http or https address")));
        }
        let mut headers = HeaderMap::new();
        if let Some(key) = key {
            let value = HeaderValue::from_str(&format!("Bearer {key}"));
            let mut value =
                value.map_err(|_| Failure::new(Exit::Auth, "the API key has characters that no key has"))?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let mut http = reqwest::Client::builder()
            .user_agent(concat!("longhaul/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers)
            // A redirect would carry the key to somewhere else.
            .redirect(redirect::Policy::none())
            .connect_timeout(CONNECT)
            .read_timeout(SILENCE);
        if is_loopback(&base) {
            http = http.no_proxy();
        }
        let http = http.build().map_err(|error| Failure::during("cannot set up HTTP", &error))?;
        Ok(Self { http, base })
    }

    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, String)],
    ) -> Result<Seen<T>, ClientError> {
        seen(self.send(|| self.request(Method::GET, path, query)).await?).await
    }

    /// Items of a list: one page of `limit`, or with `all` everything.
    pub(crate) async fn list<T: DeserializeOwned>(
        &self,
        path: &[&str],
        mut query: Vec<(&str, String)>,
        limit: u32,
        all: bool,
    ) -> Result<Vec<Seen<T>>, ClientError> {
        query.push(("limit", limit.to_string()));
        let mut items = Vec::new();
        let mut cursor = None;
        loop {
            let mut query = query.clone();
            query.extend(cursor.map(|cursor| ("cursor", cursor)));
            let page: Seen<Listed> = self.get(path, &query).await?;
            for raw in page.item.data {
                items.push(Seen::new(raw)?);
            }
            cursor = page.item.next_cursor;
            if !all || cursor.is_none() {
                return Ok(items);
            }
        }
    }

    /// Items of a list that has no pages.
    pub(crate) async fn whole_list<T: DeserializeOwned>(
        &self,
        path: &[&str],
    ) -> Result<Vec<Seen<T>>, ClientError> {
        self.get::<Listed>(path, &[]).await?.item.data.into_iter().map(Seen::new).collect()
    }

    /// Sends a document under a key that makes it safe to send it again. The second value says whether the server
    /// had seen it before.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &[&str],
        idempotency_key: &str,
        body: &Value,
    ) -> Result<(Seen<T>, bool), ClientError> {
        let answer = self
            .send(|| {
                self.request(Method::POST, path, &[]).header("Idempotency-Key", idempotency_key).json(body)
            })
            .await?;
        let replayed = answer.headers().contains_key("Idempotent-Replayed");
        Ok((seen(answer).await?, replayed))
    }

    /// Sends something without a body that is the same when it is said twice.
    pub(crate) async fn tell<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, String)],
    ) -> Result<Seen<T>, ClientError> {
        seen(self.send(|| self.request(Method::POST, path, query)).await?).await
    }

    /// Asks once, and wants to know only the status.
    pub(crate) async fn probe(&self, path: &str) -> Result<StatusCode, ClientError> {
        let request = self.request(Method::GET, &[path], &[]).timeout(CONNECT);
        Ok(request.send().await.map_err(|error| self.sort(error))?.status())
    }

    fn request(&self, method: Method, path: &[&str], query: &[(&str, String)]) -> RequestBuilder {
        let mut url = self.base.clone();
        url.path_segments_mut()
            .expect("`new` refused addresses that cannot be a base")
            .pop_if_empty()
            .extend(path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        self.http.request(method, url)
    }

    /// Sends until there is an answer that another try would not change.
    async fn send(&self, request: impl Fn() -> RequestBuilder) -> Result<Response, ClientError> {
        let begin = Instant::now();
        let mut patience = PATIENCE_UNREACHED;
        let mut tries = 0;
        loop {
            tries += 1;
            let mut wait = RETRY.wait(tries, 1.0);
            let error = match request().send().await {
                Ok(answer) if answer.status().is_success() => return Ok(answer),
                Ok(answer) => {
                    let asked = retry_after(&answer);
                    let error = refusal(answer).await;
                    if !passes(&error) {
                        return Err(error);
                    }
                    patience = PATIENCE_SENT;
                    wait = asked.unwrap_or(wait);
                    error
                }
                Err(error) => {
                    let error = self.sort(error);
                    if matches!(error, ClientError::Broken(_)) {
                        patience = PATIENCE_SENT;
                    }
                    error
                }
            };
            if begin.elapsed() + wait > patience {
                return Err(error);
            }
            sleep(wait).await;
        }
    }

    fn sort(&self, error: reqwest::Error) -> ClientError {
        if error.is_connect() || error.is_builder() {
            ClientError::Unreachable { url: self.base.to_string(), source: error.without_url() }
        } else {
            ClientError::Broken(error.without_url())
        }
    }
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}

/// Whether the same request may be answered otherwise in a moment.
fn passes(error: &ClientError) -> bool {
    match error {
        ClientError::Unreachable { .. } | ClientError::Broken(_) => true,
        ClientError::Refused { status, problem } => {
            // The first try of a request whose answer was lost may still be under way.
            let in_flight = problem.code.as_deref().is_some_and(|code| code.contains("IN_FLIGHT"));
            matches!(status.as_u16(), 429 | 502 | 503 | 504) || in_flight
        }
        ClientError::Nonsense(_) => false,
    }
}

fn retry_after(answer: &Response) -> Option<Duration> {
    let seconds = answer.headers().get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// The error in an answer that is not a success. Its body may be a proxy's page, which says nothing to us.
async fn refusal(answer: Response) -> ClientError {
    let status = answer.status();
    let body = answer.bytes().await.unwrap_or_default();
    let problem: Problem = match body.len() {
        0..=LARGEST_PROBLEM => serde_json::from_slice(&body).unwrap_or_default(),
        _ => Problem::default(),
    };
    ClientError::Refused { status, problem: Box::new(problem) }
}

async fn seen<T: DeserializeOwned>(answer: Response) -> Result<Seen<T>, ClientError> {
    let body = answer.bytes().await.map_err(|error| ClientError::Broken(error.without_url()))?;
    let raw = serde_json::from_slice(&body).map_err(|error| ClientError::Nonsense(error.to_string()))?;
    Seen::new(raw)
}

#[cfg(test)]
mod tests;
