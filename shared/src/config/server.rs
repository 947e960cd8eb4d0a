//! `[server]`: where the API listens and what it accepts.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{
    report::Report,
    values::{ByteSize, HttpUrl},
};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    pub host: String,
    /// 0 lets the system choose a free one.
    pub port: u16,
    pub body_limit: ByteSize,
    /// Origins such as `https://app.example.com`, or `*`.
    pub cors_origins: Vec<String>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".to_owned(),
            port: 4680,
            body_limit: ByteSize::mib(1),
            cors_origins: Vec::new(),
        }
    }
}

impl ServerConfig {
    /// Whether only this machine can reach the server.
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.ip().is_some_and(|ip| ip.is_loopback())
    }

    /// `host:port`, as a socket is bound.
    pub fn address(&self) -> String {
        match self.ip() {
            Some(IpAddr::V6(ip)) => format!("[{ip}]:{}", self.port),
            _ => format!("{}:{}", self.host, self.port),
        }
    }

    fn ip(&self) -> Option<IpAddr> {
        self.host.trim_start_matches('[').trim_end_matches(']').parse().ok()
    }

    pub(super) fn check(&self, report: &mut Report) {
        report.require(self.ip().is_some() || url::Host::parse(&self.host).is_ok(), "server.host", || {
            format!("`{}` is neither an address nor a host name", self.host)
        });
        report.require(self.body_limit.as_u64() > 0, "server.body_limit", || "must be above 0".to_owned());
        for origin in &self.cors_origins {
            report.require(is_origin(origin), "server.cors_origins", || {
                format!("`{origin}` is not an origin: scheme://host[:port] without a path, or *")
            });
        }
    }
}

fn is_origin(text: &str) -> bool {
    let exact = |url: HttpUrl| url.origin().ascii_serialization() == text;
    text == "*" || text.parse::<HttpUrl>().is_ok_and(exact)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_address_and_its_reach_follow_from_the_host() {
        let at = |host: &str| ServerConfig { host: host.to_owned(), ..ServerConfig::default() };
        for (host, address, loopback) in [
            ("127.0.0.1", "127.0.0.1:4680", true),
            ("localhost", "localhost:4680", true),
            ("::1", "[::1]:4680", true),
            ("[::]", "[::]:4680", false),
            ("0.0.0.0", "0.0.0.0:4680", false),
        ] {
            assert_eq!((at(host).address().as_str(), at(host).is_loopback()), (address, loopback));
        }
    }

    #[test]
    fn an_origin_has_no_path() {
        assert!(is_origin("*") && is_origin("https://a.example") && is_origin("http://localhost:5173"));
        assert!(!is_origin("https://a.example/") && !is_origin("a.example") && !is_origin("null"));
    }
}
