//! API keys: `lh_<live|dev|run>_<26 random base62 characters><6 checksum characters>`.
//!
//! A key is shown once. What is stored cannot be turned back into it: a public prefix to find the row by, and the
//! SHA-256 of the whole. A mistyped key fails its checksum, so it costs no look-up.

use rand::distr::{Alphanumeric, SampleString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

const RANDOM_LEN: usize = 26;
const CHECKSUM_LEN: usize = 6;
/// How much of the random part is public. What stays secret has 107 bits.
const PUBLIC_LEN: usize = 8;

/// What a key is for, readable in the key itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    Live,
    Dev,
    /// For one run, to be shown to a browser.
    Run,
}

impl KeyKind {
    const ALL: [Self; 3] = [Self::Live, Self::Dev, Self::Run];

    const fn lead(self) -> &'static str {
        match self {
            Self::Live => "lh_live_",
            Self::Dev => "lh_dev_",
            Self::Run => "lh_run_",
        }
    }
}

/// A well-formed key: one just made, or one that somebody presents. Never printed by accident.
#[derive(Clone)]
pub struct Key {
    text: String,
    kind: KeyKind,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({}…)", self.prefix())
    }
}

impl Key {
    /// A fresh key from the system's random source.
    pub fn generate(kind: KeyKind) -> Self {
        let mut text = kind.lead().to_owned();
        Alphanumeric.append_string(&mut rand::rng(), &mut text, RANDOM_LEN);
        text.push_str(&checksum(&text));
        Self { text, kind }
    }

    /// The key in a header or a file, or `None` if no such key can exist.
    pub fn parse(text: &str) -> Option<Self> {
        let kind = KeyKind::ALL.into_iter().find(|kind| text.starts_with(kind.lead()))?;
        let rest = &text[kind.lead().len()..];
        if rest.len() != RANDOM_LEN + CHECKSUM_LEN || !rest.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return None;
        }
        let (body, sum) = text.split_at(text.len() - CHECKSUM_LEN);
        (checksum(body) == sum).then(|| Self { text: text.to_owned(), kind })
    }

    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    /// The whole key, to be shown once.
    pub fn reveal(&self) -> &str {
        &self.text
    }

    /// The public part, by which the row is found.
    pub fn prefix(&self) -> &str {
        &self.text[..self.kind.lead().len() + PUBLIC_LEN]
    }

    pub fn last_four(&self) -> &str {
        &self.text[self.text.len() - 4..]
    }

    /// SHA-256 of the whole key.
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(self.text.as_bytes()).into()
    }

    /// Whether a stored digest is this key's, in a time that does not depend on where they differ.
    pub fn matches(&self, stored: &[u8]) -> bool {
        self.digest().ct_eq(stored).into()
    }
}

/// CRC-32 (IEEE) in base62. It guards against typos, not against forgers.
fn checksum(text: &str) -> String {
    const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut crc = u32::MAX;
    for byte in text.bytes() {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    let mut rest = !crc;
    let mut digits = [0; CHECKSUM_LEN];
    for digit in digits.iter_mut().rev() {
        *digit = DIGITS[(rest % 62) as usize];
        rest /= 62;
    }
    digits.iter().map(|digit| char::from(*digit)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fresh_key_has_the_documented_form_and_parses() {
        for (kind, lead) in
            [(KeyKind::Live, "lh_live_"), (KeyKind::Dev, "lh_dev_"), (KeyKind::Run, "lh_run_")]
        {
            let key = Key::generate(kind);
            assert!(key.reveal().starts_with(lead));
            assert_eq!(key.reveal().len(), lead.len() + 32);
            let parsed = Key::parse(key.reveal()).unwrap();
            assert_eq!(parsed.prefix(), key.prefix());
            assert!(parsed.matches(&key.digest()));
            assert!(key.reveal().ends_with(key.last_four()));
        }
    }

    #[test]
    fn any_mistyped_character_fails_without_a_look_up() {
        let key = Key::generate(KeyKind::Live);
        for at in "lh_live_".len()..key.reveal().len() {
            let mut typo = key.reveal().as_bytes().to_vec();
            typo[at] = if typo[at] == b'a' { b'b' } else { b'a' };
            assert!(Key::parse(std::str::from_utf8(&typo).unwrap()).is_none(), "at {at}");
        }
        for text in
            ["", "lh_", "lh_live_", "lh_test_abc", "sk-123", &key.reveal()[1..], "lh_live_éééééééééééééééé"]
        {
            assert!(Key::parse(text).is_none(), "{text}");
        }
    }

    #[test]
    fn another_keys_digest_does_not_match() {
        let (a, b) = (Key::generate(KeyKind::Dev), Key::generate(KeyKind::Dev));
        assert!(!a.matches(&b.digest()));
        assert!(!a.matches(&a.digest()[..31]));
        assert!(!a.matches(&[]));
    }

    #[test]
    fn debug_output_shows_the_public_part_only() {
        let key = Key::generate(KeyKind::Live);
        let shown = format!("{key:?}");
        assert!(shown.contains(key.prefix()) && !shown.contains(key.reveal()));
    }

    #[test]
    fn the_checksum_is_crc_32() {
        // The check value of CRC-32/ISO-HDLC for "123456789" is 0xcbf43926 = 3421780262.
        let value = checksum("123456789").bytes().fold(0_u64, |value, digit| {
            let digit = match digit {
                b'0'..=b'9' => digit - b'0',
                b'A'..=b'Z' => digit - b'A' + 10,
                _ => digit - b'a' + 36,
            };
            value * 62 + u64::from(digit)
        });
        assert_eq!(value, 0xcbf4_3926);
    }
}
