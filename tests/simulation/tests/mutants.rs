//! Each guard that is taken out is seen, and nothing is seen where none is.

use std::process::Command;

/// A few times what the mutant needs that lives longest.
const SCHEDULES: &str = "1500";

#[test]
fn every_missing_guard_is_seen() {
    let mut mutants = Command::new(env!("CARGO_BIN_EXE_longhaul-simulation"));
    let output = mutants.args(["--mutants", "--schedules", SCHEDULES]).output().expect("it can be started");
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{table}{}", String::from_utf8_lossy(&output.stderr));
    assert!(table.lines().count() > longhaul_shared::mutant::Mutant::ALL.len(), "{table}");
}
