//! Finds the servers and programs that tests need on this machine, or installs them where that is possible without asking.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::child::{Interrupt, run};

const OLDEST_POSTGRES: u32 = 15;
const OLDEST_NODE: u32 = 18;
/// Ends well in a Python that is new enough (3.11, as the packages say) and can make environments.
const FITTING_PYTHON: &str = "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))";
const DEBIAN_POSTGRES: &str = "/usr/lib/postgresql";
const SERVICE_POLICY: &str = "/usr/sbin/policy-rc.d";

/// The folder with `initdb` and `postgres`.
pub(crate) fn postgres(interrupt: &Interrupt) -> Result<PathBuf> {
    found_or_installed("postgresql", installed_postgres, interrupt).context(
        "PostgreSQL 15 or newer is neither in PATH nor in /usr/lib/postgresql/*/bin. Install it (on Debian: apt-get \
         install postgresql), or set LONGHAUL_TEST_POSTGRES_URL to a server on which tests may create databases",
    )
}

pub(crate) fn redis(interrupt: &Interrupt) -> Result<PathBuf> {
    found_or_installed("redis-server", || in_path("redis-server"), interrupt).context(
        "redis-server is not in PATH. Install Redis 7 or newer (on Debian: apt-get install redis-server)",
    )
}

/// Node and its package manager.
pub(crate) fn node(interrupt: &Interrupt) -> Result<(PathBuf, PathBuf)> {
    let both = || Some((in_path("node").filter(|node| is_new_enough(node))?, in_path("npm")?));
    found_or_installed("npm", both, interrupt).context(
        "Node 18 or newer with npm is not in PATH, for the tests with clients of others (on Debian: apt-get install npm)",
    )
}

/// A Python that can make environments.
pub(crate) fn python(interrupt: &Interrupt) -> Result<PathBuf> {
    // The first in PATH may be another one than the system's, which is what can be installed.
    let fitting = || all_in_path("python3").find(|python| is_fitting_python(python));
    found_or_installed("python3-venv", fitting, interrupt).context(
        "Python 3.11 or newer with its modules venv and ensurepip is not in PATH, for the tests with clients of others \
         (on Debian: apt-get install python3-venv)",
    )
}

pub(crate) fn curl(interrupt: &Interrupt) -> Result<PathBuf> {
    found_or_installed("curl", || in_path("curl"), interrupt)
        .context("curl is not in PATH, for the test of an example (on Debian: apt-get install curl)")
}

/// A browser without a window.
pub(crate) fn chromium(interrupt: &Interrupt) -> Result<PathBuf> {
    let any = || ["chromium", "chromium-browser", "google-chrome"].into_iter().find_map(in_path);
    found_or_installed("chromium", any, interrupt).context(
        "Chromium is not in PATH, for the tests of a page in a browser (on Debian: apt-get install chromium)",
    )
}

fn is_new_enough(node: &Path) -> bool {
    let version = Command::new(node).arg("--version").output().ok();
    let version = version.and_then(|output| String::from_utf8(output.stdout).ok());
    let major = version.and_then(|text| text.trim_start_matches('v').split('.').next()?.parse::<u32>().ok());
    major.is_some_and(|major| major >= OLDEST_NODE)
}

fn is_fitting_python(python: &Path) -> bool {
    Command::new(python).args(["-c", FITTING_PYTHON]).output().is_ok_and(|output| output.status.success())
}

/// The first file of that name in PATH. It is not resolved further: Debian's `redis-server` is a link whose name matters.
pub(crate) fn in_path(program: &str) -> Option<PathBuf> {
    all_in_path(program).next()
}

fn all_in_path(program: &str) -> impl Iterator<Item = PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let files: Vec<_> = std::env::split_paths(&path).map(|folder| folder.join(program)).collect();
    files.into_iter().filter(|file| file.is_file())
}

/// Numeric id of a user (`-u`) or of its group (`-g`), as `id` prints it; without a name, our own.
pub(crate) fn user_id(flag: &str, user: Option<&str>) -> Option<u32> {
    let output = Command::new("id").arg(flag).args(user).output().ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}

pub(crate) fn installed_postgres() -> Option<PathBuf> {
    // A link in PATH is followed: the folder that it leads to has the other programs (pg_ctl, pg_dump) as well.
    let from_path =
        in_path("initdb").and_then(|file| Some(file.canonicalize().ok()?.parent()?.to_path_buf()));
    if let Some(folder) = from_path.filter(|folder| version(folder).is_some_and(|v| v >= OLDEST_POSTGRES)) {
        return Some(folder);
    }
    let folders = fs::read_dir(DEBIAN_POSTGRES).ok()?.flatten().map(|entry| entry.path().join("bin"));
    let new_enough =
        folders.filter_map(|folder| Some((version(&folder)?, folder))).filter(|(v, _)| *v >= OLDEST_POSTGRES);
    new_enough.max().map(|(_, folder)| folder)
}

/// The major version of a folder that has both programs.
fn version(folder: &Path) -> Option<u32> {
    if !folder.join("initdb").is_file() {
        return None;
    }
    let output = Command::new(folder.join("postgres")).arg("--version").output().ok()?;
    major_version(&String::from_utf8(output.stdout).ok()?)
}

fn major_version(line: &str) -> Option<u32> {
    let after = line.split_once("(PostgreSQL) ")?.1;
    after.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn found_or_installed<T>(package: &str, find: impl Fn() -> Option<T>, interrupt: &Interrupt) -> Result<T> {
    if let Some(found) = find() {
        return Ok(found);
    }
    install(package, interrupt)?;
    find().with_context(|| format!("the package {package} was installed, but what we need is not in it"))
}

fn install(package: &str, interrupt: &Interrupt) -> Result<()> {
    if in_path("apt-get").is_none() {
        bail!("it cannot be installed automatically: there is no apt-get");
    }
    if user_id("-u", None) != Some(0) {
        bail!("it cannot be installed automatically: we are not root");
    }
    eprintln!("installing {package}, whose own service is kept from starting");
    let _held_back = ServicesHeldBack::begin()?;
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["-q", "-o", "DPkg::Lock::Timeout=120"])
            .args(args);
        // Our own output may be read by a program: `servers` prints what to export.
        run(command.stdout(std::io::stderr()), interrupt)
    };
    apt(&["update"])?;
    apt(&["install", "-y", "--no-install-recommends", package])
}

/// Debian starts a service as soon as it is installed, unless this policy says no. One that is there already stays.
struct ServicesHeldBack {
    ours: bool,
}

impl ServicesHeldBack {
    fn begin() -> Result<Self> {
        match OpenOptions::new().write(true).create_new(true).mode(0o755).open(SERVICE_POLICY) {
            Ok(mut file) => {
                let held_back = Self { ours: true };
                file.write_all(b"#!/bin/sh\nexit 101\n").context("cannot write the service policy")?;
                Ok(held_back)
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(Self { ours: false }),
            Err(error) => Err(error).with_context(|| format!("cannot write {SERVICE_POLICY}")),
        }
    }
}

impl Drop for ServicesHeldBack {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = fs::remove_file(SERVICE_POLICY)
        {
            eprintln!("cannot remove {SERVICE_POLICY}, which keeps services from starting: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::major_version;

    #[test]
    fn the_major_version_is_read_from_debian_and_from_release_candidates() {
        assert_eq!(major_version("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n"), Some(15));
        assert_eq!(major_version("postgres (PostgreSQL) 19rc1\n"), Some(19));
        assert_eq!(major_version("something else"), None);
    }
}
