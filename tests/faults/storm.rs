//! Load, and everything that can go wrong at once.

#[derive(clap::Args)]
pub(crate) struct Args {}

pub(crate) async fn run(_: Args) -> bool {
    eprintln!("there is no storm yet");
    false
}
