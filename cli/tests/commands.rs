//! The binary as a person or a script meets it: what goes to stdout, and how it exits.

#![expect(clippy::unwrap_used, reason = "a test fails where something is not as it should be")]

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, Output, Stdio},
    thread,
};

/// The binary in a folder of its own, with nothing of the caller's environment that it would read.
fn longhaul(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_longhaul"));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("LONGHAUL_") || matches!(&*text, "DATABASE_URL" | "RUST_LOG") {
            command.env_remove(&name);
        }
    }
    command.args(args).current_dir(folder).stdin(Stdio::null());
    command
}

fn on_sqlite(folder: &Path, args: &[&str]) -> Command {
    let mut command = longhaul(folder, args);
    command.env("LONGHAUL_DATABASE_URL", "sqlite:./data/x.db");
    command
}

fn ends(mut command: Command, code: i32) -> (String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let (stdout, stderr) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
    assert_eq!(status.code(), Some(code), "{command:?}\n{stdout}{stderr}");
    (stdout, stderr)
}

/// A server that answers every request, by its first line, and never closes an event stream that it began.
fn server(answer: fn(&str) -> String) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let (mut first, mut length) = (String::new(), 0);
                reader.read_line(&mut first).unwrap();
                loop {
                    let mut line = String::new();
                    reader.read_line(&mut line).unwrap();
                    if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                        length = value.trim().parse().unwrap();
                    }
                    if line.trim().is_empty() {
                        break;
                    }
                }
                reader.read_exact(&mut vec![0; length]).unwrap();
                stream.write_all(answer(first.trim()).as_bytes()).unwrap();
                if first.contains("/events") {
                    // Until the client goes away.
                    let _ = reader.read(&mut [0]);
                }
            });
        }
    });
    address
}

fn json(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

/// A run that has begun to answer and does not end.
fn a_long_run(request: &str) -> String {
    const STREAM: &str = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: text/event-stream\r\n\r\n";
    const EVENT: &str = r#"{"seq":1,"type":"text.delta","at":"2026-11-20T10:00:00Z","step":1,"attempt":1,"data":{"text":"Hel"}}"#;
    match request {
        _ if request.starts_with("POST /v1/runs ") => {
            json("202 Accepted", r#"{"runId":"r1","chatId":"c1","status":"pending"}"#)
        }
        _ if request.contains("/v1/runs/r1/events") => {
            format!("{STREAM}id: 1\nevent: text.delta\ndata: {EVENT}\n\n")
        }
        _ if request.contains("/v1/runs/r1 ") => json("200 OK", r#"{"runId":"r1","status":"running"}"#),
        _ if request.contains("/livez") => json("200 OK", "{}"),
        _ if request.contains("/readyz") => json("503 Service Unavailable", "{}"),
        _ => json("404 Not Found", r#"{"title":"Not found","code":"NOT_FOUND","requestId":"q"}"#),
    }
}

fn client(folder: &Path, address: SocketAddr, args: &[&str]) -> Command {
    let mut command = longhaul(folder, args);
    command.env("LONGHAUL_URL", format!("http://{address}"));
    command
}

fn interrupt(child: &Child) {
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
}

#[test]
fn the_configuration_is_shown_checked_and_explained() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("longhaul.toml"), "[worker]\nslots = 3\n").unwrap();
    ends(on_sqlite(folder.path(), &["config", "check"]), 0);
    let (shown, _) = ends(on_sqlite(folder.path(), &["config", "show", "--origin"]), 0);
    let line = shown.lines().find(|line| line.starts_with("worker.slots ")).unwrap();
    assert!(line.contains(" 3 ") && line.ends_with("longhaul.toml"), "{line}");
    let (shown, _) = ends(on_sqlite(folder.path(), &["config", "show", "-o", "json"]), 0);
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["worker.slots"], "3");

    fs::write(folder.path().join("longhaul.toml"), "[worker]\nslotz = 3\n").unwrap();
    let (_, error) = ends(on_sqlite(folder.path(), &["config", "check"]), 1);
    assert!(error.contains("did you mean `worker.slots`"), "{error}");

    for (command, head) in [("docs", "# Configuration"), ("env-example", "# Made by")] {
        let (text, _) = ends(longhaul(folder.path(), &["config", command]), 0);
        assert!(text.starts_with(head) && text.ends_with('\n') && !text.contains('\u{1b}'), "{text}");
    }
}

#[test]
fn a_database_goes_from_nothing_to_a_key_that_works_and_is_revoked() {
    let folder = tempfile::tempdir().unwrap();
    for args in [&["migrate", "status"][..], &["keys", "list"], &["api"], &["worker"]] {
        let (_, error) = ends(on_sqlite(folder.path(), args), 1);
        assert!(error.contains("longhaul migrate up"), "{args:?}: {error}");
    }
    assert!(!folder.path().join("data/x.db").exists(), "looking makes no database");
    ends(on_sqlite(folder.path(), &["migrate", "up"]), 0);
    ends(on_sqlite(folder.path(), &["migrate", "status"]), 0);
    let create = ["keys", "create", "ci", "--role", "operator", "--workspace", "acme"];
    let (key, note) = ends(on_sqlite(folder.path(), &create), 0);
    assert!(key.starts_with("lh_live_") && key.lines().count() == 1, "{key}");
    assert!(!note.contains(key.trim()), "the key is printed once: {note}");
    let list = ["keys", "list", "--workspace", "acme", "-o", "json"];
    let (keys, _) = ends(on_sqlite(folder.path(), &list), 0);
    let keys: serde_json::Value = serde_json::from_str(&keys).unwrap();
    assert_eq!((&keys[0]["role"], &keys[0]["status"]), (&"operator".into(), &"ok".into()));
    let id = keys[0]["id"].as_str().unwrap();
    ends(on_sqlite(folder.path(), &["keys", "revoke", id]), 3);
    ends(on_sqlite(folder.path(), &["keys", "revoke", id, "--workspace", "acme"]), 0);
    let (keys, _) = ends(on_sqlite(folder.path(), &["keys", "list", "--workspace", "acme"]), 0);
    assert!(keys.contains("revoked"), "{keys}");
    ends(on_sqlite(folder.path(), &["doctor"]), 0);
}

#[test]
fn a_server_without_keys_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    ends(on_sqlite(folder.path(), &["migrate", "up"]), 0);
    let mut api = on_sqlite(folder.path(), &["api"]);
    api.env("LONGHAUL_AUTH_MODE", "loopback");
    let (_, error) = ends(api, 1);
    assert!(error.contains("auth.mode"), "{error}");
    let mut dev = longhaul(folder.path(), &["dev"]);
    dev.env("LONGHAUL_DATABASE_URL", "postgres://nobody@127.0.0.1:1/none");
    let (_, error) = ends(dev, 1);
    assert!(error.contains("SQLite"), "{error}");
}

#[test]
fn a_second_dev_on_the_same_file_says_so_and_the_first_stops_in_good_order() {
    let folder = tempfile::tempdir().unwrap();
    let args = ["dev", "--port", "0", "--db", "data/dev.db", "-o", "json"];
    let mut first =
        longhaul(folder.path(), &args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut document = String::new();
    let mut stdout = BufReader::new(first.stdout.take().unwrap());
    while !document.ends_with("}\n") {
        assert_ne!(stdout.read_line(&mut document).unwrap(), 0, "{document}");
    }
    let start: serde_json::Value = serde_json::from_str(&document).unwrap();
    assert_eq!((&start["auth"], &start["apiKey"]), (&"loopback".into(), &serde_json::Value::Null));
    let (_, error) = ends(longhaul(folder.path(), &args), 1);
    assert!(error.contains("another longhaul server uses data/dev.db"), "{error}");
    let mut worker = longhaul(folder.path(), &["worker"]);
    worker.env("LONGHAUL_DATABASE_URL", "sqlite:data/dev.db");
    let (_, error) = ends(worker, 1);
    assert!(error.contains("longhaul dev"), "{error}");
    interrupt(&first);
    assert_eq!(first.wait().unwrap().code(), Some(0));
}

#[test]
fn an_ephemeral_dev_leaves_nothing_behind() {
    let (folder, temporary) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let args = ["dev", "--port", "0", "--host", "0.0.0.0", "--ephemeral", "-o", "jsonl"];
    let mut dev = longhaul(folder.path(), &args)
        .env("TMPDIR", temporary.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(dev.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let start: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(start["auth"], "required");
    assert!(start["apiKey"].as_str().unwrap().starts_with("lh_dev_"), "{start}");
    assert!(Path::new(start["database"].as_str().unwrap()).starts_with(temporary.path()));
    interrupt(&dev);
    assert_eq!(dev.wait().unwrap().code(), Some(0));
    assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_script_gets_the_runs_id_alone() {
    let folder = tempfile::tempdir().unwrap();
    let address = server(a_long_run);
    assert_eq!(
        ends(client(folder.path(), address, &["run", "demo", "hi"]), 0),
        ("r1\n".into(), String::new())
    );
    let (body, _) = ends(client(folder.path(), address, &["run", "demo", "hi", "-o", "jsonl"]), 0);
    assert_eq!(body, "{\"chatId\":\"c1\",\"runId\":\"r1\",\"status\":\"pending\"}\n");
}

#[test]
fn exit_codes_tell_scripts_what_happened() {
    let folder = tempfile::tempdir().unwrap();
    let address = server(a_long_run);
    for (args, code) in [
        (&["runs", "get", "r1"][..], 0),
        (&["runs", "get", "r2"], 3),
        (&["runs", "tail", "r2"], 3),
        (&["run", "demo", ""], 2),
        (&["run"], 2),
        (&["run", "demo", "hi", "--wait=100ms"], 124),
        (&["health", "livez"], 0),
        (&["health", "readyz"], 1),
        (&["runs", "get", "r1", "--api-key-file", "missing"], 4),
        (&["version"], 0),
    ] {
        let (_, error) = ends(client(folder.path(), address, args), code);
        assert!(!error.contains("panicked"), "{error}");
    }
}

#[test]
fn ctrl_c_detaches_and_says_how_to_get_back() {
    let folder = tempfile::tempdir().unwrap();
    let address = server(a_long_run);
    for args in [&["run", "demo", "hi", "--follow"][..], &["runs", "tail", "r1"]] {
        let mut command = client(folder.path(), address, args);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut text = [0; 3];
        child.stdout.as_mut().unwrap().read_exact(&mut text).unwrap();
        assert_eq!(&text, b"Hel", "text is shown when it comes");
        interrupt(&child);
        let output = child.wait_with_output().unwrap();
        let notes = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(130), "{notes}");
        assert!(notes.contains("Re-attach: longhaul runs tail r1"), "{notes}");
    }
}

#[test]
fn a_process_does_not_start_with_a_fault_that_it_does_not_have() {
    let folder = tempfile::tempdir().unwrap();
    let version = |variable: &str, value: &str| {
        let mut version = longhaul(folder.path(), &["version"]);
        version.env(variable, value);
        version
    };
    for (variable, value) in [("LONGHAUL_FAILPOINTS", "after_lunch=kill"), ("LONGHAUL_MUTANT", "no_tests")] {
        let (_, error) = ends(version(variable, value), 2);
        assert!(error.contains(variable), "{error}");
    }
    // A build for tests has these; any other says that it has none.
    let code = if cfg!(debug_assertions) { 0 } else { 2 };
    ends(version("LONGHAUL_FAILPOINTS", "after_claim=kill"), code);
    ends(version("LONGHAUL_MUTANT", "no_status_condition"), code);
}
