//! Files that the binary prints about itself, so that they cannot say anything else than the code.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::child::{Interrupt, read};

/// What to ask the binary, and where the answer is kept.
const FILES: [(&[&str], &str); 4] = [
    (&["openapi"], "api/openapi.json"),
    (&["config", "docs"], "docs/configuration.md"),
    (&["config", "env-example"], ".env.example"),
    (&["config", "metrics-docs"], "docs/metrics.md"),
];

pub(crate) fn run(check: bool, interrupt: &Interrupt) -> Result<()> {
    let mut stale = Vec::new();
    for (args, file) in FILES {
        let mut command = Command::new("cargo");
        command.args(["run", "--quiet", "--package", "longhaul", "--"]).args(args);
        let fresh = read(&mut command, interrupt)?;
        if fresh.trim().is_empty() {
            bail!("`longhaul {}` printed nothing, so {file} cannot be made", args.join(" "));
        }
        if is_current(Path::new(file), &fresh)? {
            continue;
        }
        if check {
            stale.push(file);
        } else {
            write(Path::new(file), &fresh)?;
            eprintln!("wrote {file}");
        }
    }
    if stale.is_empty() {
        Ok(())
    } else {
        bail!("stale: {} (cargo xtask gen writes it anew)", stale.join(", "))
    }
}

fn is_current(file: &Path, fresh: &str) -> Result<bool> {
    if !file.exists() {
        return Ok(false);
    }
    let kept = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(kept == fresh)
}

fn write(file: &Path, text: &str) -> Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}
