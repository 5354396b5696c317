//! Pages: an answer's list is cut where its head would outgrow a frame.
//!
//! Counted is the JSON as it will be sent, so nothing that is written long (a path full of
//! characters that JSON escapes, a label with many profiles) slips past the bound.

use serde::Serialize;

use super::limits::{PAGE_BYTES, PAGE_ITEMS};

/// Cuts a list down to what one answer may hold; true when something was cut off. The first item
/// always stays, so that whoever pages comes to an end.
pub fn fit_page<T: Serialize>(items: &mut Vec<T>) -> bool {
    let mut bytes = 0usize;
    let fits = |item: &&T| {
        let length = serde_json::to_vec(item).map_or(PAGE_BYTES, |json| json.len());
        bytes = bytes.saturating_add(length).saturating_add(1);
        bytes <= PAGE_BYTES
    };
    let kept = items.iter().take(PAGE_ITEMS).take_while(fits).count().max(1);
    let is_cut = kept < items.len();
    items.truncate(kept);
    is_cut
}

/// The smallest items above `after`, in order: one more than a page takes, so that [`fit_page`]
/// can tell whether it was all. It never sorts more than it gives.
pub fn next_items<T, K: Ord>(
    items: impl Iterator<Item = T>,
    after: Option<&K>,
    key: impl Fn(&T) -> K,
) -> Vec<T> {
    let mut above: Vec<T> =
        items.filter(|item| after.is_none_or(|after| key(item) > *after)).collect();
    if above.len() > PAGE_ITEMS + 1 {
        above.select_nth_unstable_by_key(PAGE_ITEMS, &key);
        above.truncate(PAGE_ITEMS + 1);
    }
    above.sort_unstable_by_key(key);
    above
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_bounded_in_number_and_in_bytes_as_they_are_sent() {
        let mut few = vec!["a"; PAGE_ITEMS];
        assert!(!fit_page(&mut few));
        assert_eq!(few.len(), PAGE_ITEMS);
        let mut many = vec!["a"; PAGE_ITEMS + 1];
        assert!(fit_page(&mut many));
        assert_eq!(many.len(), PAGE_ITEMS);
        let mut long = vec!["\u{1}".repeat(1024); PAGE_ITEMS];
        assert!(fit_page(&mut long));
        assert!(serde_json::to_vec(&long).unwrap().len() <= PAGE_BYTES + 2);
        let mut one = vec!["a".repeat(2 * PAGE_BYTES); 2];
        assert!(fit_page(&mut one), "a page is never empty");
        assert_eq!(one.len(), 1);
        assert!(!fit_page(&mut Vec::<u8>::new()));
    }

    #[test]
    fn pages_follow_each_other_without_loss() {
        let all: Vec<u32> = (0..3 * 1000 + 7).rev().collect();
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let mut page = next_items(all.iter().copied(), after.as_ref(), |n| *n);
            let more = fit_page(&mut page);
            after = page.last().copied();
            seen.extend(page);
            if !more {
                break;
            }
        }
        assert_eq!(seen, (0..3007).collect::<Vec<_>>());
    }
}
