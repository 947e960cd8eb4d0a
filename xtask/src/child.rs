//! Child processes that never outlive us, and an orderly end when somebody presses Ctrl-C.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How long a test runner may tidy up after Ctrl-C before it is told again.
const TIDY_UP: Duration = Duration::from_secs(3);

/// Whether somebody asked us to end. The signals only set a flag, so that servers are always stopped on the way out.
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    pub(crate) fn listen() -> Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&flag)).context("cannot listen for signals")?;
        }
        Ok(Self(flag))
    }

    pub(crate) fn happened(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn wait_while(&self, mut go_on: impl FnMut() -> Result<()>) -> Result<()> {
        while !self.happened() {
            go_on()?;
            sleep(LOOK_EVERY);
        }
        Ok(())
    }
}

/// Runs a command to its end; anything but success is an error that names it.
pub(crate) fn run(command: &mut Command, interrupt: &Interrupt) -> Result<()> {
    say(command);
    let status = wait(spawn(command, libc::SIGTERM)?, interrupt)?;
    succeeded(command, status)
}

/// [`run`] for a cargo command that needs nothing but its arguments.
pub(crate) fn cargo<const N: usize>(args: [&str; N], interrupt: &Interrupt) -> Result<()> {
    run(Command::new("cargo").args(args), interrupt)
}

/// As [`run`], but what the command prints is the answer.
pub(crate) fn read(command: &mut Command, interrupt: &Interrupt) -> Result<String> {
    say(command);
    let mut child = spawn(command.stdout(Stdio::piped()), libc::SIGTERM)?;
    let mut stdout = child.stdout.take().context("its output is piped")?;
    // Read in full before waiting: a full pipe would keep the command from ending.
    let text = io::read_to_string(&mut stdout).context("cannot read what the command prints")?;
    let status = wait(child, interrupt)?;
    succeeded(command, status)?;
    Ok(text)
}

/// Starts a process that gets `signal` when we die, however we die.
pub(crate) fn spawn(command: &mut Command, signal: libc::c_int) -> Result<Child> {
    die_with_parent(command, signal);
    // Cargo told these to us. Told on to another cargo they look like changed settings, and half of the tree is built anew.
    let told = std::env::vars_os().map(|(name, _)| name);
    for name in told.filter(|name| is_about_us(&name.to_string_lossy())) {
        command.env_remove(name);
    }
    command.spawn().with_context(|| format!("cannot start {}", line(command)))
}

fn is_about_us(variable: &str) -> bool {
    variable.starts_with("CARGO_PKG_") || variable.starts_with("CARGO_MANIFEST_")
}

/// Sends a signal to a child that was not waited for yet, so its process id is still its own.
#[expect(unsafe_code, reason = "the standard library sends only SIGKILL")]
pub(crate) fn signal(child: &Child, signal: libc::c_int) {
    // SAFETY: kill() takes two numbers and touches no memory of ours.
    unsafe { libc::kill(child.id().cast_signed(), signal) };
}

#[expect(unsafe_code, reason = "the request has to be made between fork and exec")]
fn die_with_parent(command: &mut Command, signal: libc::c_int) {
    // SAFETY: the closure calls one async-signal-safe function and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            #[cfg(target_os = "linux")]
            if libc::prctl(libc::PR_SET_PDEATHSIG, signal) != 0 {
                return Err(io::Error::last_os_error());
            }
            #[cfg(not(target_os = "linux"))]
            let _ = signal;
            Ok(())
        });
    }
}

fn wait(mut child: Child, interrupt: &Interrupt) -> Result<ExitStatus> {
    let mut asked_at = None;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if interrupt.happened() {
            // The terminal sent its Ctrl-C to the child too. A signal that only we got is passed on, after a while.
            let since = *asked_at.get_or_insert_with(Instant::now);
            if since.elapsed() > TIDY_UP {
                signal(&child, libc::SIGTERM);
                asked_at = Some(Instant::now());
            }
        }
        sleep(LOOK_EVERY);
    }
}

fn succeeded(command: &Command, status: ExitStatus) -> Result<()> {
    if status.success() { Ok(()) } else { bail!("{} failed: {status}", line(command)) }
}

fn say(command: &Command) {
    eprintln!("$ {}", line(command));
}

fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::{Interrupt, read};

    #[test]
    fn what_cargo_says_about_this_package_reaches_no_command() {
        assert!(std::env::var_os("CARGO_PKG_NAME").is_some(), "cargo tells its tests");
        let seen = read(&mut Command::new("env"), &Interrupt::listen().unwrap()).unwrap();
        assert!(seen.contains("PATH=") && !seen.contains("CARGO_PKG_") && !seen.contains("CARGO_MANIFEST_"));
    }
}
