//! What a run is asked: the text of an argument, of `@file`, or of stdin.

use std::io::{self, IsTerminal, Read};

use crate::exit::Failure;

/// Reads the input that `argument` names. Without one, stdin is read if something is piped into it.
pub(crate) fn read(argument: Option<&str>) -> Result<String, Failure> {
    let text = match argument {
        Some("-") => from(io::stdin().lock())?,
        Some(argument) => match argument.strip_prefix('@') {
            Some(path) => std::fs::read_to_string(path)
                .map_err(|error| Failure::usage(format!("cannot read {path}: {error}")))?,
            None => argument.to_owned(),
        },
        None if io::stdin().is_terminal() => {
            return Err(Failure::usage("what is the run to do? Give a text, @file, or - for stdin"));
        }
        None => from(io::stdin().lock())?,
    };
    if text.trim().is_empty() {
        return Err(Failure::usage("the input is empty"));
    }
    Ok(text)
}

fn from(mut reader: impl Read) -> Result<String, Failure> {
    let mut text = String::new();
    let read = reader.read_to_string(&mut text);
    read.map_err(|error| Failure::usage(format!("cannot read the input: {error}")))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;

    #[test]
    fn input_is_text_or_a_file() {
        assert_eq!(read(Some("hello")).unwrap(), "hello");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "from a file\n").unwrap();
        assert_eq!(read(Some(&format!("@{}", file.path().display()))).unwrap(), "from a file\n");
    }

    #[test]
    fn nothing_to_do_is_a_usage_error() {
        for argument in ["", "  \n", "@/does/not/exist"] {
            assert_eq!(read(Some(argument)).unwrap_err().exit, Exit::Usage, "{argument:?}");
        }
        assert_eq!(from(&b"\xff"[..]).unwrap_err().exit, Exit::Usage);
    }
}
