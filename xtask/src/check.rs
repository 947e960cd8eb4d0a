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

#[cfg(test)]
mod tests {
    /// Where cargo-deny is not installed, what it would refuse outright is refused by this.
    #[test]
    fn no_crate_that_is_denied_everywhere_is_locked() {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
        let read = |file: &str| std::fs::read_to_string(format!("{root}/{file}")).unwrap();
        let (deny, lock) = (read("deny.toml"), read("Cargo.lock"));
        let denied: Vec<&str> = deny
            .lines()
            .filter_map(|line| line.trim().strip_prefix("{ crate = \"")?.strip_suffix("\" },"))
            .collect();
        assert!(denied.contains(&"openssl-sys"), "the list was read: {denied:?}");
        for name in denied {
            assert!(!lock.contains(&format!("name = \"{name}\"")), "{name} is denied");
        }
    }
}
