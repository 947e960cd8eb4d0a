//! What a test suite is too short for, with everything around it that it needs.

use std::process::Command;

use anyhow::{Result, bail};

use crate::child::{Interrupt, cargo, run};
use crate::servers::Servers;

/// Builds the product and what breaks it, and runs the latter. `--profile` says how to build; the rest is passed on.
pub(crate) fn faults(args: &[String], interrupt: &Interrupt) -> Result<()> {
    let (profile, args) = split_profile(args)?;
    cargo(["build", "--profile", &profile, "--package", "longhaul"], interrupt)?;
    cargo(["build", "--profile", &profile, "--package", "longhaul-tests", "--bin", "faults"], interrupt)?;
    let servers = Servers::start(interrupt)?;
    let mut faults = Command::new("cargo");
    faults.args([
        "run",
        "--quiet",
        "--profile",
        &profile,
        "--package",
        "longhaul-tests",
        "--bin",
        "faults",
        "--",
    ]);
    run(faults.args(args).envs(servers.env()), interrupt)
}

fn split_profile(args: &[String]) -> Result<(String, Vec<String>)> {
    let mut rest = args.to_vec();
    let Some(at) = rest.iter().position(|arg| arg == "--profile") else {
        return Ok(("dev".to_owned(), rest));
    };
    rest.remove(at);
    if at >= rest.len() {
        bail!("--profile needs a name: dev or bench");
    }
    let profile = rest.remove(at);
    match profile.as_str() {
        "dev" | "bench" => Ok((profile, rest)),
        _ => bail!(
            "{profile} is not a profile for this: take dev, or bench, which is nearly as fast as a release"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::split_profile;

    fn split(args: &str) -> Option<(String, String)> {
        let args: Vec<String> = args.split(' ').map(str::to_owned).collect();
        split_profile(&args).ok().map(|(profile, rest)| (profile, rest.join(" ")))
    }

    #[test]
    fn the_profile_may_stand_anywhere_among_the_arguments() {
        let storm = |profile: &str| Some((profile.to_owned(), "storm --seed 7".to_owned()));
        assert_eq!(split("storm --seed 7"), storm("dev"));
        assert_eq!(split("storm --profile bench --seed 7"), storm("bench"));
        assert_eq!(split("storm --seed 7 --profile"), None);
        assert_eq!(split("storm --profile fast"), None);
    }
}
