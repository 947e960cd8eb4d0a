//! Outgoing calls reach public addresses only.
//!
//! A URL is parsed once, by `url`. Its host may resolve to public unicast addresses and to nothing else: one
//! private answer refuses them all, and what was checked is what is connected to, because the check sits in
//! the resolver of the HTTP client itself. `net.allow` lifts this for exact `host:port` pairs; another port of
//! the same host stays closed. Redirects are never followed, the environment's proxies are never used, and a
//! refusal tells no address.

mod address;

use std::{collections::HashSet, error::Error, io, net::SocketAddr, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use reqwest::{
    Method, RequestBuilder,
    dns::{Addrs, Name, Resolve, Resolving},
    redirect::Policy,
};
use url::{Host, Url};

pub use address::is_public;

/// Why a call was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("only http and https addresses may be called")]
    Scheme,
    #[error("a URL to call must not carry a user name or password")]
    Userinfo,
    #[error("the URL has no host")]
    NoHost,
    #[error("the host is not public; list it as host:port in net.allow if it is meant")]
    NotPublic,
    #[error("the host has no address")]
    NoAddress,
}

impl Refused {
    /// The refusal inside an error of the HTTP client, which wraps what its resolver said.
    pub fn find(error: &(dyn Error + 'static)) -> Option<Self> {
        std::iter::successors(Some(error), |&error| error.source())
            .find_map(|error| error.downcast_ref::<Self>().copied())
    }
}

/// An entry of `net.allow` that is not `host:port`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not host:port")]
pub struct BadAllow(pub String);

/// Which hosts may be called. Cheap to clone.
#[derive(Clone, Debug)]
pub struct NetGuard {
    allowed: Arc<HashSet<(String, u16)>>,
}

/// How long the client of [`NetGuard::client`] waits, and for what.
#[derive(Clone, Copy, Debug)]
pub struct ClientOptions {
    pub connect_timeout: Duration,
    /// The longest silence of an answer, counted in bytes.
    pub read_timeout: Option<Duration>,
    /// Short, because the other side closes idle connections without notice.
    pub idle_timeout: Duration,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            read_timeout: None,
            idle_timeout: Duration::from_secs(4),
        }
    }
}

/// The only way to send a request: each URL is checked before it is used. Cheap to clone.
#[derive(Clone, Debug)]
pub struct GuardedClient {
    guard: NetGuard,
    public: reqwest::Client,
    /// For the pairs that are allowed by name; absent where there are none.
    allowed: Option<reqwest::Client>,
}

impl NetGuard {
    pub fn new(allow: &[String]) -> Result<Self, BadAllow> {
        let allowed = allow.iter().map(|entry| parse_pair(entry)).collect::<Result<_, _>>()?;
        Ok(Self { allowed: Arc::new(allowed) })
    }

    /// Whether this URL may be called, as far as it can be told without asking for the host's addresses.
    pub fn check(&self, url: &Url) -> Result<(), Refused> {
        self.route(url).map(|_| ())
    }

    /// A client that calls what this guard lets through. The TLS provider must have been installed.
    pub fn client(&self, options: &ClientOptions) -> reqwest::Result<GuardedClient> {
        self.client_with(options, &system_lookup())
    }

    fn client_with(&self, options: &ClientOptions, lookup: &Lookup) -> reqwest::Result<GuardedClient> {
        let build = |check| {
            let mut builder = reqwest::Client::builder()
                .redirect(Policy::none())
                .no_proxy()
                .referer(false)
                .user_agent(concat!("longhaul/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(options.connect_timeout)
                .pool_idle_timeout(options.idle_timeout)
                .tcp_nodelay(true)
                .dns_resolver(CheckedResolver { lookup: Arc::clone(lookup), check });
            if let Some(timeout) = options.read_timeout {
                builder = builder.read_timeout(timeout);
            }
            builder.build()
        };
        let public = build(true)?;
        let allowed = if self.allowed.is_empty() { None } else { Some(build(false)?) };
        Ok(GuardedClient { guard: self.clone(), public, allowed })
    }

    fn route(&self, url: &Url) -> Result<Route, Refused> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(Refused::Scheme);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Refused::Userinfo);
        }
        let host = url.host().ok_or(Refused::NoHost)?;
        let port = url.port_or_known_default().ok_or(Refused::NoHost)?;
        if self.allowed.contains(&(host.to_string(), port)) {
            return Ok(Route::Allowed);
        }
        // The client does not ask its resolver about a host that is an address already.
        let public = match host {
            Host::Domain(_) => true,
            Host::Ipv4(address) => is_public(address.into()),
            Host::Ipv6(address) => is_public(address.into()),
        };
        if public { Ok(Route::Public) } else { Err(Refused::NotPublic) }
    }
}

impl GuardedClient {
    /// A request to a URL that has passed the guard.
    pub fn request(&self, method: Method, url: &Url) -> Result<RequestBuilder, Refused> {
        let client = match self.guard.route(url)? {
            Route::Public => &self.public,
            Route::Allowed => self.allowed.as_ref().ok_or(Refused::NotPublic)?,
        };
        Ok(client.request(method, url.clone()))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    Public,
    Allowed,
}

/// `host:port` as the URL parser writes the host, so that both sides of the comparison have one spelling.
fn parse_pair(entry: &str) -> Result<(String, u16), BadAllow> {
    let bad = || BadAllow(entry.to_owned());
    let (host, port) = entry.trim().rsplit_once(':').ok_or_else(bad)?;
    let port: u16 = port.parse().ok().filter(|port| *port != 0).ok_or_else(bad)?;
    if host.contains(['/', '@', '?', '#', '\\']) {
        return Err(bad());
    }
    let url = Url::parse(&format!("http://{host}:{port}/")).map_err(|_| bad())?;
    let host = url.host().ok_or_else(bad)?.to_string();
    Ok((host, port))
}

type Lookup = Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync>;

fn system_lookup() -> Lookup {
    Arc::new(|host| Box::pin(async move { Ok(tokio::net::lookup_host((host, 0)).await?.collect()) }))
}

/// Hands to the connector only what was checked, at each connection anew.
struct CheckedResolver {
    lookup: Lookup,
    check: bool,
}

impl Resolve for CheckedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let answer = (self.lookup)(name.as_str().to_owned());
        let check = self.check;
        Box::pin(async move {
            let addresses = answer.await?;
            if addresses.is_empty() {
                return Err(Refused::NoAddress.into());
            }
            if check && !addresses.iter().all(|address| is_public(address.ip())) {
                return Err(Refused::NotPublic.into());
            }
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests;
