//! Lists that the broker gives a page at a time, put together. Bounded like the broker's own tables,
//! so that a broker out of its mind does not fill our memory.

use super::access::Asking;
use super::fault::Fault;
use super::secrets::unexpected;
use crate::model::{Answer, Ask, DeviceSummary, Entry, SecretValue, limits};

/// All devices, by id.
pub(super) async fn devices(asking: &Asking) -> Result<Vec<DeviceSummary>, Fault> {
    let mut all: Vec<DeviceSummary> = Vec::new();
    loop {
        let after = all.last().map(|device| device.id);
        let (_, released) = asking.ask(Ask::DeviceList { after }, SecretValue::empty()).await?;
        let Answer::Devices { items, more } = released.answer else {
            return Err(unexpected(&released));
        };
        let goes_on = more && !items.is_empty();
        all.extend(items);
        if !goes_on || all.len() >= limits::DEVICES_MAX {
            return Ok(all);
        }
    }
}

/// All entries, by SPIFFE ID and id.
pub(super) async fn entries(asking: &Asking) -> Result<Vec<Entry>, Fault> {
    let mut all: Vec<Entry> = Vec::new();
    loop {
        let after = all.last().map(|entry| entry.id);
        let (_, released) = asking.ask(Ask::EntryList { after }, SecretValue::empty()).await?;
        let Answer::Entries { items, more, .. } = released.answer else {
            return Err(unexpected(&released));
        };
        let goes_on = more && !items.is_empty();
        all.extend(items);
        if !goes_on || all.len() >= limits::ENTRIES_MAX {
            break;
        }
    }
    let place = |entry: &Entry| (entry.draft.spiffe_id.as_str().to_owned(), entry.id);
    all.sort_by_cached_key(place);
    Ok(all)
}
