//! A host whose wall clock is wrong, and jumps: a shim that the loader puts in front of the C library of a process.
//!
//! Only the wall clock is touched. The monotonic clock goes on as it should, as it does on such a host.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Program;

const SHIM: &str = include_str!("wrong_clock.c");
/// Tells the shim where the offset stands.
const OFFSET: &str = "WRONG_CLOCK";

/// The clock of some processes, and how wrong it is.
#[derive(Debug)]
pub struct WrongClock {
    library: PathBuf,
    path: PathBuf,
    file: File,
}

impl WrongClock {
    /// A clock that goes wrong by so many seconds; what it needs is put into the folder.
    pub fn new(dir: &Path, name: &str, seconds: i64) -> io::Result<Self> {
        let (source, library) = (dir.join("wrong_clock.c"), dir.join("wrong_clock.so"));
        if !library.exists() {
            fs::write(&source, SHIM)?;
            let options = ["-O1", "-shared", "-fPIC", "-o"];
            let built = Command::new("cc").args(options).args([&library, &source]).arg("-ldl").output()?;
            if !built.status.success() {
                return Err(io::Error::other(String::from_utf8_lossy(&built.stderr).into_owned()));
            }
        }
        let path = dir.join(name);
        let file = File::options().create(true).truncate(true).read(true).write(true).open(&path)?;
        file.write_all_at(&[0; 16], 0)?;
        let clock = Self { library, path, file };
        clock.set(seconds);
        Ok(clock)
    }

    /// The same program with this clock.
    #[must_use]
    pub fn worn_by(&self, program: Program) -> Program {
        program.env("LD_PRELOAD", &self.library).env(OFFSET, &self.path)
    }

    /// It jumps.
    pub fn set(&self, seconds: i64) {
        self.file.write_all_at(&seconds.to_ne_bytes(), 0).expect("the file is ours");
    }

    /// How often it was asked.
    pub fn asked(&self) -> i64 {
        let mut count = [0; 8];
        self.file.read_exact_at(&mut count, 8).expect("the file is ours");
        i64::from_ne_bytes(count)
    }
}

#[cfg(test)]
mod tests {
    use super::WrongClock;
    use crate::Program;

    #[tokio::test]
    async fn a_process_believes_its_wrong_clock() {
        let dir = tempfile::tempdir().unwrap();
        let clock = WrongClock::new(dir.path(), "clock", -3_600).unwrap();
        let tell = async || {
            let date = Program::other("/bin/date", "date", dir.path()).args(["+%s"]);
            clock.worn_by(date).run().await.unwrap().trim().parse::<i64>().unwrap()
        };
        let behind = tell().await;
        clock.set(3_600);
        let jump = tell().await - behind;
        assert!((7_200..7_260).contains(&jump), "{jump}");
        assert!(clock.asked() >= 2);
    }
}
