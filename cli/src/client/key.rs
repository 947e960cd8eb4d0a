//! Where the client's key comes from: a file, else the environment. Never a flag, which everybody on the machine sees.

use std::path::Path;

use longhaul_shared::config::Environment;

use crate::exit::{Exit, Failure};

const VARIABLE: &str = "LONGHAUL_API_KEY";

/// The key to send, if there is one.
pub(crate) fn find(file: Option<&Path>) -> Result<Option<String>, Failure> {
    match file {
        Some(path) => read(path).map(Some),
        None => Ok(Environment::of_process().get(VARIABLE).map(|key| key.trim().to_owned())),
    }
}

fn read(path: &Path) -> Result<String, Failure> {
    let refused = |reason: String| {
        Failure::new(Exit::Auth, format!("cannot read the API key from {}: {reason}", path.display()))
    };
    let text = std::fs::read_to_string(path).map_err(|error| refused(error.to_string()))?;
    match text.trim() {
        "" => Err(refused("it is empty".to_owned())),
        key => Ok(key.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_file_is_read_without_its_line_break_and_must_hold_something() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "lh_live_x\n").unwrap();
        assert_eq!(find(Some(file.path())).unwrap().as_deref(), Some("lh_live_x"));
        std::fs::write(file.path(), "\n").unwrap();
        assert_eq!(find(Some(file.path())).unwrap_err().exit, Exit::Auth);
        assert_eq!(find(Some(Path::new("/does/not/exist"))).unwrap_err().exit, Exit::Auth);
    }
}
