//! Secrets never come back out: what a provider or a tool echoes is cleared of what was sent to it.

use sha2::{Digest, Sha256};

/// By which a person finds out which key it was: the first eight digits of its SHA-256.
pub fn fingerprint(secret: &str) -> String {
    let digest = Sha256::digest(secret);
    let first = digest.first_chunk().expect("SHA-256 has 32 bytes");
    format!("{:08x}", u32::from_be_bytes(*first))
}

/// Finds known secrets in foreign text.
#[derive(Clone, Default)]
pub struct Redactor {
    secrets: Vec<String>,
}

impl std::fmt::Debug for Redactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redactor").field("secrets", &self.secrets.len()).finish()
    }
}

impl Redactor {
    /// Shorter ones would blot out ordinary words and keep nothing secret.
    const SHORTEST: usize = 6;
    pub const MARK: &'static str = "[redacted]";

    /// Knows each value, and of a value like `Bearer abc` its last word too.
    pub fn new<'a>(values: impl IntoIterator<Item = &'a str>) -> Self {
        let mut secrets: Vec<String> = values
            .into_iter()
            .flat_map(|value| [Some(value.trim()), value.split_whitespace().next_back()])
            .flatten()
            .filter(|secret| secret.len() >= Self::SHORTEST)
            .map(str::to_owned)
            .collect();
        // The longest first, so that no part of one is left standing.
        secrets.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        secrets.dedup();
        Self { secrets }
    }

    pub fn redact(&self, text: &str) -> String {
        self.secrets.iter().fold(text.to_owned(), |text, secret| {
            if text.contains(secret) { text.replace(secret, Self::MARK) } else { text }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_what_sha256sum_begins_with() {
        assert_eq!(fingerprint("abc"), "ba7816bf");
    }

    #[test]
    fn a_secret_is_cleared_with_and_without_its_scheme() {
        let redactor = Redactor::new(["Bearer sk-12345678", "short"]);
        assert_eq!(
            redactor.redact("got 'Bearer sk-12345678', key sk-12345678, short"),
            "got '[redacted]', key [redacted], short"
        );
        assert!(!format!("{redactor:?}").contains("sk-"));
    }
}
