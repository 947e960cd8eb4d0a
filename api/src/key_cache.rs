//! Looked-up API keys, kept for a few seconds so that a busy caller costs no query per call.
//!
//! A revocation takes effect within [`TTL`]. Unknown keys are remembered too, and the whole is bounded.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use longhaul_shared::{
    api_key::Key,
    store::{ApiKey, Store, StoreError},
};

const TTL: Duration = Duration::from_secs(3);
const CAPACITY: usize = 4096;

#[derive(Clone)]
struct Entry {
    read_at: Instant,
    key: Option<Arc<ApiKey>>,
}

#[derive(Default)]
pub(crate) struct KeyCache {
    entries: Mutex<HashMap<String, Entry>>,
}

impl KeyCache {
    /// The stored key that `presented` is, if there is one in force.
    pub(crate) async fn find(
        &self,
        store: &dyn Store,
        presented: &Key,
    ) -> Result<Option<Arc<ApiKey>>, StoreError> {
        let stored = if let Some(entry) = self.get(presented.prefix()) {
            entry.key
        } else {
            let read_at = Instant::now();
            let key = store.find_key(presented.prefix()).await?.map(Arc::new);
            self.put(presented.prefix(), Entry { read_at, key: key.clone() });
            key
        };
        // Compared in any case, so that the time taken does not tell whether the prefix exists.
        let matches = presented.matches(stored.as_ref().map_or(&[0; 32], |key| &key.digest));
        Ok(stored.filter(|key| matches && key.revoked_at.is_none() && !key.is_expired))
    }

    fn get(&self, prefix: &str) -> Option<Entry> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.get(prefix).filter(|entry| entry.read_at.elapsed() < TTL).cloned()
    }

    fn put(&self, prefix: &str, entry: Entry) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= CAPACITY {
            entries.retain(|_, entry| entry.read_at.elapsed() < TTL);
            if entries.len() >= CAPACITY {
                entries.clear();
            }
        }
        entries.insert(prefix.to_owned(), entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_bounded_and_forgets() {
        let cache = KeyCache::default();
        for n in 0..CAPACITY * 2 {
            cache.put(&n.to_string(), Entry { read_at: Instant::now(), key: None });
        }
        assert!(cache.entries.lock().unwrap().len() <= CAPACITY);
        if let Some(past) = Instant::now().checked_sub(TTL) {
            cache.put("old", Entry { read_at: past, key: None });
            assert!(cache.get("old").is_none());
        }
        cache.put("new", Entry { read_at: Instant::now(), key: None });
        assert!(cache.get("new").is_some());
    }
}
