//! Names the next migration: the same number and words for both databases, so that the folders never drift apart.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};

const FOLDERS: [&str; 2] = ["migrations/postgres", "migrations/sqlite"];

pub(crate) fn create(words: &[String]) -> Result<()> {
    let name = name(words)?;
    let [postgres, sqlite] = FOLDERS.map(|folder| last_number(Path::new(folder)));
    let (postgres, sqlite) = (postgres?, sqlite?);
    if postgres != sqlite {
        bail!("the folders disagree: {} ends at {postgres}, {} at {sqlite}", FOLDERS[0], FOLDERS[1]);
    }
    for folder in FOLDERS {
        let file = format!("{folder}/{:04}_{name}.sql", postgres + 1);
        let mut migration = OpenOptions::new().write(true).create_new(true).open(&file)?;
        writeln!(migration, "-- {}", words.join(" "))?;
        println!("{file}");
    }
    Ok(())
}

fn name(words: &[String]) -> Result<String> {
    let name = words.join("_").to_lowercase().replace([' ', '-'], "_");
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_') {
        bail!("a migration's name is made of letters and digits: {name}");
    }
    Ok(name)
}

fn last_number(folder: &Path) -> Result<u32> {
    fs::create_dir_all(folder)?;
    let mut last = 0;
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let file = entry?.file_name();
        let number = file.to_str().and_then(|name| name.split_once('_')?.0.parse().ok());
        last = last.max(number.unwrap_or(0));
    }
    Ok(last)
}

#[cfg(test)]
mod tests {
    use super::{last_number, name};

    #[test]
    fn words_become_a_file_name() {
        let words = ["Add".to_owned(), "run-tags".to_owned()];
        assert_eq!(name(&words).unwrap(), "add_run_tags");
        assert!(name(&["../evil".to_owned()]).is_err());
    }

    #[test]
    fn numbering_goes_on_after_the_highest_file() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(last_number(folder.path()).unwrap(), 0);
        for file in ["0001_workspaces.sql", "0012_runs.sql", "README.md"] {
            std::fs::write(folder.path().join(file), "").unwrap();
        }
        assert_eq!(last_number(folder.path()).unwrap(), 12);
    }
}
