//! What must hold before any test runs: formatting, lints, and what we may depend on.

use anyhow::Result;

use crate::child::{Interrupt, cargo};
use crate::find;

pub(crate) fn everything(interrupt: &Interrupt) -> Result<()> {
    style(interrupt)?;
    if find::in_path("cargo-deny").is_some() {
        return cargo(["deny", "--workspace", "check"], interrupt);
    }
    eprintln!(
        "cargo-deny is not installed, so deny.toml was not checked (cargo install --locked cargo-deny)"
    );
    Ok(())
}

pub(crate) fn style(interrupt: &Interrupt) -> Result<()> {
    cargo(["fmt", "--all", "--check"], interrupt)?;
    cargo(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"], interrupt)
}
