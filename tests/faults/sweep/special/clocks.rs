//! Workers whose hosts have the time wrong: leases are the database's, so nobody notices.

use std::path::{Path, PathBuf};
use std::process::Command;

use longhaul_tests::{At, Script, Setup, Turn, World};

use super::at_rest;
use crate::clock::now_ms;
use crate::workers::identities;

const OFFSET_S: i64 = 3_600;
/// How far a reading of the wrong clock may be from what it should be wrong by.
const TOLERANCE_MS: u64 = 60_000;

/// Takes the place of the C library's clock. The monotonic one, which no step of the time of day touches, stays.
const SHIM: &str = r#"
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long offset(void) {
    const char *seconds = getenv("CLOCK_OFFSET_SECONDS");
    return seconds ? atol(seconds) : 0;
}

int clock_gettime(clockid_t id, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, id, now);
    if (!failed && id == CLOCK_REALTIME) now->tv_sec += offset();
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec time;
    int failed = clock_gettime(CLOCK_REALTIME, &time);
    now->tv_sec = time.tv_sec;
    now->tv_usec = time.tv_nsec / 1000;
    return failed;
}
"#;

pub(super) async fn wrong_clocks(setup: Setup) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let shim = build(dir.path());
    let mut world = World::start(setup.workers(0)).await;
    let mut flaws = Vec::new();
    for offset in [OFFSET_S, -OFFSET_S] {
        let change = |program: longhaul_tests::Program| {
            program.env("LD_PRELOAD", &shim).env("CLOCK_OFFSET_SECONDS", offset.to_string())
        };
        world.start_worker_with(change).await;
        let worker = world.workers.last_mut().unwrap();
        worker.says("the worker holds a lease").await;
        let (read, _) = identities(&worker.output())[0].clone();
        if (read - now_ms()).abs_diff(offset * 1_000) > TOLERANCE_MS {
            flaws.push(format!("a clock that is to be wrong by {offset} s says {read}"));
        }
    }
    world.provider.script("helper", Script::new([Turn::marked(9)]));
    let gate = world.provider.gate("helper", At::Token(3));
    let submitted = world.client().submit("helper", "Go.").await;
    let tail = world.tail(&submitted.run_id);
    gate.reached().await;
    // Long enough for whoever takes the other's lease for one that is over.
    let leases = "select cast(sum(expires_at) as bigint) from workers";
    for _ in 0..4 {
        let before = world.rows.number(leases).await;
        world.rows.until("leases are renewed", leases, |now| now > before + 1_500).await;
    }
    let run = world.client().run(&submitted.run_id).await;
    if run.attempts != 1 {
        flaws.push(format!("{} attempts although nobody died", run.attempts));
    }
    let log = world.rows.log(&submitted.run_id).await;
    let claimed = log.iter().rfind(|event| event.kind == "run.claimed").unwrap();
    let holder = claimed.data["workerId"].as_str().unwrap().to_owned();
    let is_holder = |output: String| identities(&output).iter().any(|(_, id)| *id == holder);
    world.workers.iter_mut().find(|worker| is_holder(worker.output())).unwrap().kill();
    gate.open();
    tail.ended().await;
    let run = world.client().ended(&submitted.run_id).await;
    if (run.outcome().as_str(), run.attempts) != ("succeeded done", 2) {
        flaws.push(format!("the run ended {} after {} attempts", run.outcome(), run.attempts));
    }
    flaws.extend(at_rest(&mut world).await);
    flaws
}

fn build(dir: &Path) -> PathBuf {
    let (source, shim) = (dir.join("clock.c"), dir.join("clock.so"));
    std::fs::write(&source, SHIM).unwrap();
    // Whoever can build the product has a C compiler: it links.
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&shim, &source]).status().unwrap();
    assert!(built.success(), "the clock cannot be built: {built}");
    shim
}
