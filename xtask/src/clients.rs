//! The packages of clients that nobody here wrote, installed from their registries into a cache folder.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::child::{Interrupt, run};
use crate::find;

const SCRIPTS: &str = "tests/clients/node";
const CACHE: &str = "target/clients/node";
const LOCK: &str = "package-lock.json";
/// In the cache folder: what was installed last.
const INSTALLED: &str = "node_modules/.installed";

/// The scripts beside the packages that they import, and what tests are told about them.
pub(crate) fn node(interrupt: &Interrupt) -> Result<Vec<(&'static str, OsString)>> {
    let (node, npm) = find::node(interrupt)?;
    let (scripts, cache) = (Path::new(SCRIPTS), env::current_dir()?.join(CACHE));
    fs::create_dir_all(&cache)?;
    for file in fs::read_dir(scripts)? {
        let file = file?;
        fs::copy(file.path(), cache.join(file.file_name()))?;
    }
    let lock = fs::read(scripts.join(LOCK))?;
    if fs::read(cache.join(INSTALLED)).ok().as_ref() != Some(&lock) {
        let mut install = Command::new(npm);
        install.current_dir(&cache).args(["ci", "--no-progress", "--loglevel=error"]);
        // Node may lie where nothing else of its kind does.
        install.env("PATH", with_folder_of(&node)?);
        run(&mut install, interrupt).context("the packages of client tests cannot be installed")?;
        fs::write(cache.join(INSTALLED), lock)?;
    }
    Ok(vec![
        ("LONGHAUL_TEST_NODE", node.into()),
        ("LONGHAUL_TEST_CLIENTS_NODE", cache.into()),
        ("LONGHAUL_TEST_CHROMIUM", find::chromium(interrupt)?.into()),
    ])
}

fn with_folder_of(program: &Path) -> Result<OsString> {
    let folders = program.parent().map(PathBuf::from).into_iter();
    let path = env::var_os("PATH").unwrap_or_default();
    Ok(env::join_paths(folders.chain(env::split_paths(&path)))?)
}
