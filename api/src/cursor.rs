//! Opaque page cursors: the key of the last item, typed by its list, so that one list's cursor is refused by another.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Serialize, de::DeserializeOwned};

use crate::error::{ApiError, Code};

const MAX_LEN: usize = 512;

/// The cursor behind the item with that key.
pub(crate) fn encode<K: Serialize>(list: &str, key: &K) -> String {
    let json = serde_json::to_vec(&(list, key)).expect("keys are ids and numbers");
    URL_SAFE_NO_PAD.encode(json)
}

/// The key in a cursor of that list.
pub(crate) fn decode<K: DeserializeOwned>(list: &str, cursor: &str) -> Result<K, ApiError> {
    (cursor.len() <= MAX_LEN)
        .then(|| URL_SAFE_NO_PAD.decode(cursor).ok())
        .flatten()
        .and_then(|json| serde_json::from_slice::<(String, K)>(&json).ok())
        .filter(|(name, _)| name == list)
        .map(|(_, key)| key)
        .ok_or_else(|| Code::InvalidCursor.into())
}

#[cfg(test)]
mod tests {
    use longhaul_shared::domain::ids::{ChatId, RunId};

    use super::*;

    #[test]
    fn a_cursor_comes_back_as_it_went() {
        let id = RunId::generate();
        assert_eq!(decode::<RunId>("runs", &encode("runs", &id)).unwrap(), id);
        assert_eq!(decode::<(i64, i32)>("messages", &encode("messages", &(7_i64, 1))).unwrap(), (7, 1));
        assert!(encode("runs", &id).bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
    }

    #[test]
    fn a_cursor_of_another_list_or_a_forged_one_is_refused() {
        let cursor = encode("chats", &ChatId::generate());
        for bad in [cursor.as_str(), "", "x", "!!", "bnVsbA", &"A".repeat(MAX_LEN + 4), &cursor[..10]] {
            assert_eq!(decode::<RunId>("runs", bad).unwrap_err().code, Code::InvalidCursor, "{bad}");
        }
    }
}
