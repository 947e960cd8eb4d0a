//! A script of a client, and the world that it plays in.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use longhaul_tests::{Answer, At, Fault, Gate, Script, Setup, Turn, World};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

/// The program that runs scripts of Node, and where they lie beside the packages that they import.
const NODE: (&str, &str) = ("LONGHAUL_TEST_NODE", "LONGHAUL_TEST_CLIENTS_NODE");
/// The program that runs scripts of Python and knows where its packages are.
pub(crate) const PYTHON: &str = "LONGHAUL_TEST_PYTHON";
const PATIENCE: Duration = Duration::from_mins(4);

/// What a script wants to happen.
#[derive(Debug, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
enum Wish {
    /// What a model says from now on.
    Script {
        model: String,
        turns: Vec<TurnWish>,
    },
    /// Stops the model's answers before this token. Answered by the number of the gate.
    Gate {
        model: String,
        token: usize,
    },
    /// Waits until so many answers stand at the gate.
    Reached {
        gate: usize,
        by: usize,
    },
    Open {
        gate: usize,
    },
    /// Answered by the bodies of all requests for this model so far.
    Asked {
        model: String,
    },
    /// A tool refuses with this status from now on, or does what it should again.
    Tool {
        name: String,
        status: Option<u16>,
    },
    /// Answered by the secret of a new key.
    Key {
        workspace: String,
        role: String,
    },
    KillWorkers,
    /// Kills all workers and starts another one.
    ReplaceWorkers,
    /// Kills an API process, or asks it to end, and starts it again at the same address.
    RestartApi {
        api: usize,
        #[serde(default)]
        gently: bool,
    },
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TurnWish {
    /// Tokens `a{attempt}.s{turn}.{i} `.
    #[serde(default)]
    marked: usize,
    /// Tokens behind the marked ones.
    #[serde(default)]
    text: Vec<String>,
    #[serde(default)]
    reasoning: Vec<String>,
    /// Names and arguments.
    #[serde(default)]
    calls: Vec<(String, Value)>,
    #[serde(default)]
    delay_ms: u64,
    finish_reason: Option<String>,
    /// The provider refuses with this status instead.
    status: Option<u16>,
}

impl From<TurnWish> for Turn {
    fn from(wish: TurnWish) -> Self {
        let mut turn = Self::marked(wish.marked).and_text(wish.text).reasoning(wish.reasoning);
        turn = turn.delay(Duration::from_millis(wish.delay_ms));
        for (name, arguments) in &wish.calls {
            turn = turn.and_call(name, arguments);
        }
        if let Some(reason) = wish.finish_reason {
            turn = turn.finish_reason(&reason);
        }
        match wish.status {
            Some(status) => turn.always(Fault::status(status)),
            None => turn,
        }
    }
}

/// Runs a script of Node to its end, which must be a good one.
pub(crate) async fn node(file: &str, setup: Setup) {
    let mut program = Command::new(needed(NODE.0));
    play(program.arg(PathBuf::from(needed(NODE.1)).join(file)), file, setup).await;
}

/// The same for a script of Python.
pub(crate) async fn python(file: &str, setup: Setup) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/python");
    let mut program = Command::new(needed(PYTHON));
    // Nothing is written beside the scripts.
    play(program.arg("-B").arg(folder.join(file)), file, setup).await;
}

pub(crate) fn needed(name: &str) -> OsString {
    std::env::var_os(name).unwrap_or_else(|| panic!("`cargo xtask test` sets {name}"))
}

async fn play(program: &mut Command, file: &str, setup: Setup) {
    let mut world = World::start(setup).await;
    let urls: Vec<String> = world.apis.iter().map(longhaul_tests::world::Server::url).collect();
    let mut process = program
        .env("LONGHAUL_APIS", urls.join(" "))
        // What the encoders are held to, which some scripts give to clients.
        .env("LONGHAUL_VIEWS", Path::new(env!("CARGO_MANIFEST_DIR")).join("../api/src/views"))
        .env("LONGHAUL_KEY", world.key.clone().unwrap_or_default())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // A group of its own, of which nothing is left behind: it may start a browser.
        .process_group(0)
        .spawn()
        .expect("the script's program can be started");
    let _group = Group(process.id().unwrap());
    let mut answers = process.stdin.take().unwrap();
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    let mut gates = Vec::new();
    let to_the_end = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            let Some(wish) = line.strip_prefix('@') else {
                eprintln!("{line}");
                continue;
            };
            let wish = serde_json::from_str(wish).unwrap_or_else(|error| panic!("{error}: {wish}"));
            let answer = fulfil(&mut world, &mut gates, wish).await;
            answers.write_all(format!("{answer}\n").as_bytes()).await.unwrap();
        }
        process.wait().await.unwrap()
    };
    let ended =
        timeout(PATIENCE, to_the_end).await.unwrap_or_else(|_| panic!("{file} does not come to its end"));
    assert!(ended.success(), "{file}: {ended}");
    world.finish().await;
}

/// The processes of a script.
struct Group(u32);

impl Drop for Group {
    #[expect(unsafe_code, reason = "the standard library knows no groups")]
    fn drop(&mut self) {
        // SAFETY: a signal to a group of our own; at worst there is none any more.
        unsafe { libc::kill(-self.0.cast_signed(), libc::SIGKILL) };
    }
}

async fn fulfil(world: &mut World, gates: &mut Vec<Gate>, wish: Wish) -> Value {
    match wish {
        Wish::Script { model, turns } => {
            world.provider.script(&model, Script::new(turns.into_iter().map(Turn::from)));
            Value::Null
        }
        Wish::Gate { model, token } => {
            gates.push(world.provider.gate(&model, At::Token(token)));
            json!(gates.len() - 1)
        }
        Wish::Reached { gate, by } => {
            gates[gate].reached_by(by).await;
            Value::Null
        }
        Wish::Open { gate } => {
            gates[gate].open();
            Value::Null
        }
        Wish::Asked { model } => {
            let calls = world.provider.calls_to(&model);
            calls.iter().map(|call| Value::clone(&call.request)).collect()
        }
        Wish::Tool { name, status } => {
            let refusal = |status| Answer::Status(status, "refused".to_owned());
            world.tools.behave(&name, status.map_or(Answer::Result, refusal));
            Value::Null
        }
        Wish::Key { workspace, role } => world.new_key(&workspace, &role).await.into(),
        Wish::KillWorkers => {
            kill_workers(world);
            Value::Null
        }
        Wish::ReplaceWorkers => {
            kill_workers(world);
            world.start_worker().await;
            Value::Null
        }
        Wish::RestartApi { api, gently } => {
            let api = &mut world.apis[api];
            if gently {
                api.terminate();
                assert!(api.ended().await.success(), "{api} ends badly when asked to");
            }
            api.restart().await;
            Value::Null
        }
    }
}

fn kill_workers(world: &mut World) {
    for worker in &mut world.workers {
        worker.kill();
    }
}
