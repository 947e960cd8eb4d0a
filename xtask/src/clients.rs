//! The packages of clients that nobody here wrote, installed from their registries into cache folders.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::child::{Interrupt, run};
use crate::find;

/// What needs packages of Node, and its cache folder.
const SCRIPTS: (&str, &str) = ("tests/clients/node", "target/clients/node");
const PAGE: (&str, &str) = ("examples/chat-page", "target/clients/chat-page");
const LOCK: &str = "package-lock.json";
/// In the cache folder: what was installed last.
const INSTALLED: &str = "node_modules/.installed";

/// Of the scripts and of the example, which must agree.
const REQUIREMENTS: [&str; 2] =
    ["tests/clients/python/requirements.txt", "examples/python-background/requirements.txt"];
const ENVIRONMENT: &str = "target/clients/python";

/// Everything that tests with clients of others are told.
pub(crate) fn all(interrupt: &Interrupt) -> Result<Vec<(&'static str, OsString)>> {
    find::curl(interrupt)?;
    Ok([node(interrupt)?, python(interrupt)?].concat())
}

fn node(interrupt: &Interrupt) -> Result<Vec<(&'static str, OsString)>> {
    let (node, npm) = find::node(interrupt)?;
    let mut install = Command::new(npm);
    install.args(["ci", "--no-progress", "--loglevel=error"]);
    // Node may lie where nothing else of its kind does.
    install.env("PATH", with_folder_of(&node)?);
    Ok(vec![
        ("LONGHAUL_TEST_NODE", node.into()),
        ("LONGHAUL_TEST_CLIENTS_NODE", beside_packages(SCRIPTS, &mut install, interrupt)?.into()),
        ("LONGHAUL_TEST_CHAT_PAGE", beside_packages(PAGE, &mut install, interrupt)?.into()),
        ("LONGHAUL_TEST_CHROMIUM", find::chromium(interrupt)?.into()),
    ])
}

/// Puts the files of a folder beside the packages that they import.
fn beside_packages(
    (folder, cache): (&str, &str),
    install: &mut Command,
    interrupt: &Interrupt,
) -> Result<PathBuf> {
    let (folder, cache) = (Path::new(folder), env::current_dir()?.join(cache));
    fs::create_dir_all(&cache)?;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        // Packages that somebody has installed there stay there.
        if entry.file_type()?.is_file() {
            fs::copy(entry.path(), cache.join(entry.file_name()))?;
        }
    }
    let lock = fs::read(folder.join(LOCK))?;
    if fs::read(cache.join(INSTALLED)).ok().as_ref() != Some(&lock) {
        run(install.current_dir(&cache), interrupt)
            .context("the packages of client tests cannot be installed")?;
        fs::write(cache.join(INSTALLED), lock)?;
    }
    Ok(cache)
}

/// An environment with the packages that scripts import; the scripts are run from where they are.
fn python(interrupt: &Interrupt) -> Result<Vec<(&'static str, OsString)>> {
    let environment = env::current_dir()?.join(ENVIRONMENT);
    let (python, installed) = (environment.join("bin/python"), environment.join(".installed"));
    let wanted = REQUIREMENTS.map(fs::read).into_iter().collect::<Result<Vec<_>, _>>()?.concat();
    // The environment's Python is a link to one that may have gone.
    if !python.is_file() || fs::read(&installed).ok().as_ref() != Some(&wanted) {
        let mut make = Command::new(find::python(interrupt)?);
        run(make.args(["-m", "venv", "--clear"]).arg(&environment), interrupt)?;
        let mut install = Command::new(&python);
        install.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
        install.args(REQUIREMENTS.iter().flat_map(|file| ["-r", file]));
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
