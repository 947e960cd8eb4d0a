//! Who may use a SQLite file at the same time.
//!
//! `longhaul dev` takes everything that it finds running for orphaned, so it must be alone; `api` and `worker` may
//! share the file with each other. The lock is the operating system's and ends with the process, however that ends.

use std::{
    ffi::OsString,
    fs::{File, TryLockError},
    path::{Path, PathBuf},
};

use longhaul_shared::config::Config;

use crate::exit::Failure;

/// Held as long as this value lives.
#[derive(Debug)]
pub(crate) struct FileLock {
    _file: File,
}

/// Keeps every other server off the database file.
pub(crate) fn exclusive(database: &Path) -> Result<FileLock, Failure> {
    take(database, File::try_lock, |lock| {
        format!(
            "another longhaul server uses {} (it holds {}); stop it, or choose another file with --db",
            database.display(),
            lock.display()
        )
    })
}

/// Keeps `longhaul dev` off the database file, if it is a file.
pub(crate) fn shared(config: &Config) -> Result<Option<FileLock>, Failure> {
    let Some(database) = config.database.url.sqlite_path() else { return Ok(None) };
    let taken = take(database, File::try_lock_shared, |lock| {
        format!(
            "`longhaul dev` uses {} and needs it for itself (it holds {}); stop it first",
            database.display(),
            lock.display()
        )
    });
    taken.map(Some)
}

fn take(
    database: &Path,
    how: impl Fn(&File) -> Result<(), TryLockError>,
    held: impl Fn(&Path) -> String,
) -> Result<FileLock, Failure> {
    let path = lock_path(database);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let failed = |error: std::io::Error| Failure::during(&format!("cannot lock {}", path.display()), &error);
    let file = File::options().create(true).write(true).truncate(false).open(&path).map_err(failed)?;
    match how(&file) {
        Ok(()) => Ok(FileLock { _file: file }),
        Err(TryLockError::WouldBlock) => Err(Failure::error(held(&path))),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

fn lock_path(database: &Path) -> PathBuf {
    let mut path = OsString::from(database);
    path.push(".lock");
    path.into()
}

#[cfg(test)]
mod tests {
    use longhaul_shared::config::{Environment, Overrides, Profile, Sources};

    use super::*;

    #[test]
    fn a_second_dev_on_the_same_file_is_told_so_until_the_first_ends() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("a/dev.db");
        let first = exclusive(&database).unwrap();
        let refused = exclusive(&database).unwrap_err();
        assert_eq!(refused.exit as u8, 1);
        let message = refused.message.unwrap();
        assert!(message.contains("dev.db.lock") && message.contains("--db"), "{message}");
        exclusive(&folder.path().join("other.db")).unwrap();
        drop(first);
        exclusive(&database).unwrap();
    }

    #[test]
    fn servers_share_a_file_with_each_other_but_not_with_dev() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("x.db");
        let config = Sources {
            profile: Profile::Plain,
            file: None,
            environment: Environment::from_iter([(
                "LONGHAUL_DATABASE_URL",
                format!("sqlite:{}", database.display()),
            )]),
            overrides: Overrides::new(),
        }
        .load()
        .unwrap();
        let servers = [shared(&config).unwrap(), shared(&config).unwrap()];
        assert!(exclusive(&database).is_err());
        drop(servers);
        let _dev = exclusive(&database).unwrap();
        assert!(shared(&config).unwrap_err().message.unwrap().contains("longhaul dev"));
    }
}
