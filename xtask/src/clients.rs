//! The packages of clients that nobody here wrote, installed from their registries into cache folders.

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

const REQUIREMENTS: &str = "tests/clients/python/requirements.txt";
const ENVIRONMENT: &str = "target/clients/python";

/// Everything that tests with clients of others are told.
pub(crate) fn all(interrupt: &Interrupt) -> Result<Vec<(&'static str, OsString)>> {
    Ok([node(interrupt)?, python(interrupt)?].concat())
}

/// The scripts beside the packages that they import, and what tests are told about them.
fn node(interrupt: &Interrupt) -> Result<Vec<(&'static str, OsString)>> {
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

/// An environment with the packages that scripts import; the scripts are run from where they are.
fn python(interrupt: &Interrupt) -> Result<Vec<(&'static str, OsString)>> {
    let environment = env::current_dir()?.join(ENVIRONMENT);
    let (python, installed) = (environment.join("bin/python"), environment.join(".installed"));
    let wanted = fs::read(REQUIREMENTS)?;
    // The environment's Python is a link to one that may have gone.
    if !python.is_file() || fs::read(&installed).ok().as_ref() != Some(&wanted) {
        let mut make = Command::new(find::python(interrupt)?);
        run(make.args(["-m", "venv", "--clear"]).arg(&environment), interrupt)?;
        let mut install = Command::new(&python);
        install.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", REQUIREMENTS]);
        run(&mut install, interrupt).context("the packages of client tests cannot be installed")?;
        fs::write(installed, wanted)?;
    }
    Ok(vec![("LONGHAUL_TEST_PYTHON", python.into())])
}

fn with_folder_of(program: &Path) -> Result<OsString> {
    let folders = program.parent().map(PathBuf::from).into_iter();
    let path = env::var_os("PATH").unwrap_or_default();
    Ok(env::join_paths(folders.chain(env::split_paths(&path)))?)
}
