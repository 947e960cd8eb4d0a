//! Keyset pages: a list goes on behind the key of the last item seen, so rows that come or go meanwhile neither
//! repeat nor hide others.

/// Part of a list: at most `limit` items behind `after`.
#[derive(Clone, Debug)]
pub struct Page<K> {
    pub limit: u32,
    pub after: Option<K>,
}

impl<K> Page<K> {
    /// How many items the page holds at most. A page of none would never come to an end.
    fn size(&self) -> usize {
        self.limit.max(1) as usize
    }

    /// How many rows to read: one more than the page holds tells whether there is a next one.
    pub(super) fn fetch(&self) -> i64 {
        self.size() as i64 + 1
    }
}

/// A page of a list, and the key to ask for the next one with, if there is more.
#[derive(Clone, Debug)]
pub struct Listed<T, K> {
    pub items: Vec<T>,
    pub next: Option<K>,
}

impl<T, K> Listed<T, K> {
    /// The page out of the [`Page::fetch`] rows that were read for it.
    pub(super) fn cut(mut items: Vec<T>, page: &Page<K>, key: impl Fn(&T) -> K) -> Self {
        let has_more = items.len() > page.size();
        items.truncate(page.size());
        let next = if has_more { items.last().map(key) } else { None };
        Self { items, next }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(rows: &[i32], limit: u32) -> (Vec<i32>, Option<i32>) {
        let page = Page { limit, after: None };
        let listed = Listed::cut(rows[..rows.len().min(page.fetch() as usize)].to_vec(), &page, |row| *row);
        (listed.items, listed.next)
    }

    #[test]
    fn a_full_page_names_a_next_one_only_if_there_is_more() {
        assert_eq!(cut(&[1, 2, 3], 2), (vec![1, 2], Some(2)));
        assert_eq!(cut(&[1, 2], 2), (vec![1, 2], None));
        assert_eq!(cut(&[], 2), (vec![], None));
        assert_eq!(cut(&[1, 2], 0), (vec![1], Some(1)));
    }
}
