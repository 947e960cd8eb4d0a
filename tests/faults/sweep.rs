//! Each fault at each point of each script.

pub(crate) mod mutants;

#[derive(clap::Args)]
pub(crate) struct Args {}

pub(crate) async fn run(_: Args) -> bool {
    false
}
