//! The examples as they lie there, beside `longhaul dev` and its demo.

use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;

use longhaul_tests::story::Event;
use longhaul_tests::{Program, Setup, World};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::script;

/// The demo alone takes more than twenty seconds.
const PATIENCE: Duration = Duration::from_mins(2);
const LOOK_EVERY: Duration = Duration::from_millis(50);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_example_of_a_page_outlives_a_reload_and_a_crash() {
    if !longhaul_tests::quick() {
        script::node("chat-page.mjs", Setup::sqlite()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_example_in_python_watches_a_response_through_a_cut() {
    if longhaul_tests::quick() {
        return;
    }
    let world = World::start(Setup::sqlite()).await;
    let printed = printed(&world, &script::needed(script::PYTHON), "python-background/background.py").await;
    let run = id_behind(&printed, "· resp_");
    let (watched, rest) = printed.split_once(" is completed\n").unwrap();
    assert_eq!(text(watched), deltas(&world.rows.log(&run).await));
    assert!(watched.contains("cut on purpose behind event 30\n"));
    assert!(rest.contains(&answer(&world, &run).await));
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_example_in_curl_follows_a_run_through_a_cut_and_stops_another() {
    if longhaul_tests::quick() {
        return;
    }
    let world = World::start(Setup::sqlite()).await;
    let printed = printed(&world, "sh".as_ref(), "curl/follow.sh").await;
    let run = id_behind(&printed, "· run ");
    let (watched, rest) = printed.split_once(": succeeded\n").unwrap();
    let log = world.rows.log(&run).await;
    assert_eq!(text(watched), deltas(&log));
    let cut = watched.split_once("cut on purpose behind event ").unwrap().1;
    let cut: usize = cut.lines().next().unwrap().parse().unwrap();
    assert!((1..log.len()).contains(&cut), "event {cut} of {}", log.len());
    assert!(rest.contains(": aborted, stop\n"));
    let stopped = world.client().run(&id_behind(rest, "· run ")).await;
    assert_eq!(stopped.outcome(), "aborted stop");
    let (_, response) = rest.split_once(": completed\n").unwrap();
    assert_eq!(response.trim_end(), answer(&world, &id_behind(rest, "· response resp_")).await);
    world.finish().await;
}

/// What an example prints until its good end.
async fn printed(world: &World, executable: &OsStr, file: &str) -> String {
    let (folder, examples) =
        (tempfile::tempdir().unwrap(), Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples")));
    let program = Program::other(executable, file.split_once('/').unwrap().0, folder.path());
    let program = program.env("LONGHAUL_URL", world.apis[0].url()).args([examples.join(file)]);
    let mut example = program.start().unwrap();
    let to_the_end = async {
        while example.is_alive() {
            sleep(LOOK_EVERY).await;
        }
    };
    timeout(PATIENCE, to_the_end).await.unwrap_or_else(|_| panic!("{file} does not come to its end"));
    let (status, output) = (example.ended().await, example.output());
    assert!(status.success(), "{file}: {status}: {output}");
    output
}

/// The first id behind these words; a response has that of its run.
fn id_behind(printed: &str, words: &str) -> String {
    let (_, behind) = printed.split_once(words).unwrap_or_else(|| panic!("{words} is not in {printed}"));
    let id: String = behind.chars().take_while(|c| c.is_ascii_hexdigit() || *c == '-').collect();
    Uuid::parse_str(&id).unwrap_or_else(|error| panic!("{error}: {id}")).to_string()
}

/// What was printed between the remarks, without its lines.
fn text(printed: &str) -> String {
    printed.lines().filter(|line| !line.starts_with("· ")).collect()
}

/// The same as the log has it.
fn deltas(log: &[Event]) -> String {
    let deltas = log.iter().filter(|event| ["text.delta", "reasoning.delta"].contains(&&*event.kind));
    deltas.flat_map(|event| event.data["text"].as_str().unwrap().lines()).collect()
}

/// The text of a run's last step.
async fn answer(world: &World, run: &str) -> String {
    let step = world.client().steps(run).await.pop().unwrap();
    step.output.last().unwrap()["text"].as_str().unwrap().to_owned()
}
