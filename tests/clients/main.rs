//! Clients that nobody here wrote, from their registries and unchanged, against API and worker processes.
//!
//! Each test is a script in the client's own language (`node/`, `python/`). It says what is to happen to the world by a
//! line on its output that begins with `@`, and goes on when it reads the answer. [`examples`] are run as they lie there.

#![expect(clippy::unwrap_used, reason = "all of this is test code, helpers too")]

mod examples;
mod script;

use longhaul_tests::Setup;

/// Two API processes and one worker, which are what the scripts expect.
fn setup() -> Setup {
    Setup::postgres().apis(2).workers(1).short_lease()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn version_seven_of_the_ai_sdk_drops_what_a_torn_step_said_if_it_is_told_to() {
    if !longhaul_tests::quick() {
        script::node("redone-steps.mjs", setup().env("LONGHAUL_STREAM_REDONE_STEPS", "drop")).await;
    }
}

macro_rules! scripts {
    ($($name:ident: $language:ident $file:literal),+ $(,)?) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            if !longhaul_tests::quick() {
                script::$language($file, setup()).await;
            }
        }
    )+};
}

scripts! {
    the_chat_transports_of_the_ai_sdk_see_whole_answers: node "chat.mjs",
    the_chat_transports_of_the_ai_sdk_outlive_cuts_and_crashes: node "chat-trouble.mjs",
    versions_five_and_six_of_the_ai_sdk_accept_every_chunk: node "older-versions.mjs",
    approvals_have_the_forms_that_clients_know: node "approvals.mjs",
    use_chat_in_a_browser_outlives_reloads_and_crashes: node "browser.mjs",
    an_event_source_watches_a_run_to_its_end: node "event-source.mjs",
    the_openai_package_of_npm_sees_whole_responses: node "responses.mjs",
    the_openai_package_of_npm_outlives_lost_replies_cuts_and_crashes: node "responses-trouble.mjs",
    the_openai_package_of_npm_keeps_conversations: node "conversations.mjs",
    the_openai_provider_of_the_ai_sdk_sees_and_resumes_responses: node "ai-openai.mjs",
    the_openai_package_of_python_sees_whole_responses: python "responses.py",
    the_openai_package_of_python_resumes_where_it_was_cut: python "responses_resumed.py",
    the_openai_package_of_python_cancels_and_deletes: python "responses_cancelled.py",
    the_openai_package_of_python_outlives_lost_replies_and_crashes: python "responses_trouble.py",
    the_openai_package_of_python_keeps_conversations: python "conversations.py",
    the_openai_package_of_python_repeats_refers_and_takes_back: python "repeats.py",
}
