use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;

fn guard(allow: &[&str]) -> NetGuard {
    NetGuard::new(&allow.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap()
}

fn check(guard: &NetGuard, url: &str) -> Result<(), Refused> {
    // A URL that does not parse is not called either.
    Url::parse(url).map_err(|_| Refused::NoHost).and_then(|url| guard.check(&url))
}

fn install_tls() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Answers every request and counts them.
async fn canary() -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let hits = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&hits);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            let mut head = [0; 2048];
            let _ = socket.read(&mut head).await;
            let _ = socket
                .write_all(
                    b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
                )
                .await;
        }
    });
    (port, hits)
}

#[test]
fn every_spelling_of_a_private_address_is_refused() {
    let guard = guard(&[]);
    for host in [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f.1",
        "0x7f000001",
        "0177.0.0.1",
        "017700000001",
        "0",
        "0.0.0.0",
        "127.0.0.1.",
        "%31%32%37.0.0.1",
        "127.0.0.1",
        "127。0。0。1",
        "10.1.2.3",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "100.100.100.200",
        "192.0.0.192",
        "198.18.0.1",
        "198.19.255.255",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "168.63.129.16",
        "[::]",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[64:ff9b:1::7f00:1]",
        "[2002:7f00:1::]",
        "[2001:0:4136:e378:8000:63bf:80ff:fffe]",
        "[2001:0:a00:1:8000:63bf:f7f7:f7f7]",
        "[2001:db8::1]",
        "[3fff::1]",
        "[fe80::1]",
        "[fe80::1%25eth0]",
        "[fc00::1]",
        "[fd00:ec2::254]",
        "[ff02::1]",
        "[2a00::5efe:10.0.0.1]",
    ] {
        assert!(check(&guard, &format!("http://{host}/x")).is_err(), "{host}");
        assert!(check(&guard, &format!("https://{host}:8443/x")).is_err(), "{host}");
    }
    assert!(check(&guard, r"http:\\127.0.0.1\x").is_err());
}

#[test]
fn public_addresses_and_their_translations_pass() {
    let guard = guard(&[]);
    for host in [
        "example.com",
        "93.184.216.34",
        "172.32.0.1",
        "100.128.0.1",
        "[2606:2800:220:1::1]",
        "[::ffff:8.8.8.8]",
        "[64:ff9b::808:808]",
        "[2002:808:808::1]",
    ] {
        assert_eq!(check(&guard, &format!("http://{host}/")), Ok(()), "{host}");
    }
}

#[test]
fn other_schemes_and_user_names_are_refused() {
    let guard = guard(&["localhost:80"]);
    for url in ["file:///etc/passwd", "gopher://example.com/", "unix:/run/x.sock", "data:text/plain,x"] {
        assert_eq!(check(&guard, url), Err(Refused::Scheme), "{url}");
    }
    for url in ["http://user@example.com/", "http://:pw@example.com/", "http://localhost:pw@localhost/"] {
        assert_eq!(check(&guard, url), Err(Refused::Userinfo), "{url}");
    }
}

#[test]
fn an_allowed_pair_opens_no_other_port_and_no_other_host() {
    let guard = guard(&["127.0.0.1:9100", "LocalHost:80", "[::1]:9200"]);
    for url in
        ["http://127.0.0.1:9100/v1", "http://127.1:9100/", "http://localhost/", "http://[0:0::1]:9200/"]
    {
        assert_eq!(guard.route(&Url::parse(url).unwrap()), Ok(Route::Allowed), "{url}");
    }
    for url in ["http://127.0.0.1:9101/", "http://127.0.0.1/", "https://127.0.0.1/", "http://127.0.0.2:9100/"]
    {
        assert_eq!(check(&guard, url), Err(Refused::NotPublic), "{url}");
    }
    for url in ["http://localhost:81/", "https://localhost/", "http://localhost.:80/"] {
        assert_eq!(guard.route(&Url::parse(url).unwrap()), Ok(Route::Public), "{url}: left to the resolver");
    }
}

#[test]
fn an_allow_entry_without_a_port_is_an_error() {
    for entry in
        ["localhost", "localhost:", "localhost:0", ":80", "a b:80", "http://x:80", "u@x:80", "x/y:80", ""]
    {
        assert_eq!(NetGuard::new(&[entry.to_owned()]).unwrap_err(), BadAllow(entry.to_owned()));
    }
}

#[tokio::test]
async fn a_name_that_leads_to_a_private_address_is_never_connected_to() {
    install_tls();
    let (port, hits) = canary().await;
    // The port is allowed for another name, so both inner clients exist.
    let client = guard(&[&format!("127.0.0.1:{port}")]).client(&ClientOptions::default()).unwrap();
    for host in ["localhost", "localhost."] {
        let url = Url::parse(&format!("http://{host}:{port}/")).unwrap();
        let error = client.request(Method::GET, &url).unwrap().send().await.unwrap_err();
        // Not every resolver knows the name with its dot; then there is nothing to refuse.
        let refused = Refused::find(&error);
        assert!(refused == Some(Refused::NotPublic) || (refused.is_none() && host == "localhost."), "{host}");
    }
    assert_eq!(hits.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn answers_that_flip_between_public_and_private_never_reach_the_private_one() {
    install_tls();
    let (port, hits) = canary().await;
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let public: SocketAddr = "203.0.114.1:0".parse().unwrap();
    let private: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let lookup: Lookup = Arc::new(move |_| {
        let answer = match count.fetch_add(1, Ordering::SeqCst) % 3 {
            0 => vec![public, private],
            1 => vec![private],
            _ => vec![],
        };
        Box::pin(async move { Ok(answer) })
    });
    let client = guard(&[]).client_with(&ClientOptions::default(), &lookup).unwrap();
    let url = Url::parse(&format!("http://rebind.example:{port}/")).unwrap();
    for _ in 0..300 {
        let error = client.request(Method::GET, &url).unwrap().send().await.unwrap_err();
        assert!(matches!(Refused::find(&error), Some(Refused::NotPublic | Refused::NoAddress)));
    }
    assert_eq!(asked.load(Ordering::SeqCst), 300);
    assert_eq!(hits.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn an_allowed_name_is_called_and_its_redirect_is_not_followed() {
    install_tls();
    let (port, hits) = canary().await;
    let client = guard(&[&format!("localhost:{port}")]).client(&ClientOptions::default()).unwrap();
    let url = Url::parse(&format!("http://localhost:{port}/")).unwrap();
    let answer = client.request(Method::GET, &url).unwrap().send().await.unwrap();
    assert_eq!(answer.status(), 302);
    assert_eq!(hits.load(Ordering::SeqCst), 1);
}
