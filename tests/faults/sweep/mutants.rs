//! The product with one guard taken out at a time.

#[derive(clap::Args)]
pub(crate) struct Args {}

pub(crate) async fn run(_: Args) -> bool {
    false
}
