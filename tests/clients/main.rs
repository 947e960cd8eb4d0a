//! Clients that nobody here wrote, from their registries and unchanged, against API and worker processes.
//!
//! Each test is a script in the client's own language (`node/`). It says what is to happen to the world by a line on its
//! output that begins with `@`, and goes on when it reads the answer.

#![expect(clippy::unwrap_used, reason = "all of this is test code, helpers too")]

mod script;

use longhaul_tests::Setup;

/// Two API processes and one worker, which are what the scripts expect.
fn setup() -> Setup {
    Setup::postgres().apis(2).workers(1).short_lease()
}

macro_rules! scripts {
    ($($name:ident: $file:literal),+ $(,)?) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            if !longhaul_tests::quick() {
                script::node($file, setup()).await;
            }
        }
    )+};
}

scripts! {
    the_chat_transports_of_the_ai_sdk_see_whole_answers: "chat.mjs",
    the_chat_transports_of_the_ai_sdk_outlive_cuts_and_crashes: "chat-trouble.mjs",
    use_chat_in_a_browser_outlives_reloads_and_crashes: "browser.mjs",
    an_event_source_watches_a_run_to_its_end: "event-source.mjs",
}
