//! Reading all rows of a table, a page at a time.

use serde::de::DeserializeOwned;

use super::error::AuthorityError;
use super::records::decode;
use crate::store::{Store, Table};

/// Rows read from the store at once.
pub(super) const PAGE: usize = 1000;

/// All rows of one table: key, record, revision.
pub(super) async fn rows<T: DeserializeOwned>(
    store: &dyn Store,
    table: Table,
) -> Result<Vec<(Vec<u8>, T, u64)>, AuthorityError> {
    rows_under(store, table, &[]).await
}

/// The same of those whose keys begin so.
pub(super) async fn rows_under<T: DeserializeOwned>(
    store: &dyn Store,
    table: Table,
    prefix: &[u8],
) -> Result<Vec<(Vec<u8>, T, u64)>, AuthorityError> {
    let mut all: Vec<(Vec<u8>, T, u64)> = Vec::new();
    loop {
        let after = all.last().map(|(key, ..)| key.clone());
        let page = store.scan(table, prefix, after.as_deref(), PAGE).await?;
        let more = page.len() == PAGE;
        for (key, row) in page {
            let record = decode(table, &key, &row.value)?;
            all.push((key, record, row.revision));
        }
        if !more {
            return Ok(all);
        }
    }
}
