//! Reading records back: those in tiles, and the durable ones behind them.
//!
//! What is read is what was acknowledged, never what is still on its way. Every answer is bounded
//! in records, in bytes and in how far it looks.

use std::io;
use std::ops::ControlFlow;

use super::merkle::{TILE, TILE_WIDTH};
use super::shared::Shared;
use super::tiles::Entries;
use crate::model::RequestId;
use crate::model::limits::{LOG_PAGE, LOG_PAGE_BYTES, LOG_SCAN};

/// Records with their indices, and the index to go on from.
pub(super) type Page = (Vec<(u64, String)>, u64);

/// At most `limit` records from `from` on that hold the text `holding`.
pub(super) fn read(
    shared: &Shared,
    from: u64,
    limit: u32,
    holding: Option<&str>,
) -> io::Result<Page> {
    let limit = usize::try_from(limit.min(LOG_PAGE)).unwrap_or(0);
    let (mut records, mut bytes, mut next) = (Vec::new(), 0usize, from);
    if limit == 0 {
        return Ok((records, next));
    }
    each(shared, from, from.saturating_add(LOG_SCAN), |index, entry| {
        if bytes.saturating_add(entry.len()) > LOG_PAGE_BYTES && !records.is_empty() {
            return ControlFlow::Break(());
        }
        next = index.saturating_add(1);
        let text = String::from_utf8_lossy(entry);
        if holding.is_none_or(|wanted| text.contains(wanted)) {
            bytes = bytes.saturating_add(entry.len());
            records.push((index, text.into_owned()));
        }
        if records.len() >= limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok((records, next))
}

/// One record's bytes.
pub(super) fn record(shared: &Shared, index: u64) -> io::Result<Option<Vec<u8>>> {
    let mut found = None;
    each(shared, index, index.saturating_add(1), |_, entry| {
        found = Some(entry.to_vec());
        ControlFlow::Break(())
    })?;
    Ok(found)
}

/// The records of one request, oldest first.
pub(super) fn find(shared: &Shared, request: RequestId) -> io::Result<Vec<(u64, String)>> {
    let mark = format!("\"id\":\"{request}\"");
    let (places, remembered) = shared.places_of(request);
    let mut found = Vec::new();
    for index in places {
        if let Some(entry) = record(shared, index)? {
            found.push((index, String::from_utf8_lossy(&entry).into_owned()));
        }
    }
    if !found.is_empty() {
        return Ok(found);
    }
    let mut end = shared.size().min(remembered);
    let stop = end.saturating_sub(LOG_SCAN);
    while end > stop && found.is_empty() {
        let from = end.saturating_sub(1) / TILE_WIDTH * TILE_WIDTH;
        found = matching(shared, from, end, &mark)?;
        if !found.is_empty() {
            // What followed from one request may stand in the bundle behind it or before it.
            let before = matching(shared, from.saturating_sub(TILE_WIDTH), from, &mark)?;
            found.splice(0..0, before);
        }
        end = from;
    }
    Ok(found)
}

fn matching(shared: &Shared, from: u64, to: u64, mark: &str) -> io::Result<Vec<(u64, String)>> {
    let mut found = Vec::new();
    each(shared, from, to, |index, entry| {
        let text = String::from_utf8_lossy(entry);
        if text.contains(mark) {
            found.push((index, text.into_owned()));
        }
        ControlFlow::Continue(())
    })?;
    Ok(found)
}

/// Hands over the durable records of `from .. to` in order.
pub(super) fn each(
    shared: &Shared,
    from: u64,
    to: u64,
    mut take: impl FnMut(u64, &[u8]) -> ControlFlow<()>,
) -> io::Result<()> {
    let (published, chunks) = shared.view();
    let size = published.edge.size();
    let mut index = from;
    while index < to.min(size) {
        let bundle = index / TILE_WIDTH;
        let start = bundle.saturating_mul(TILE_WIDTH);
        let width = usize::try_from(size.saturating_sub(start)).unwrap_or(TILE).min(TILE);
        let bytes = shared.stored.bundle(bundle, width)?;
        for (entry, at) in Entries::new(&bytes).zip(start..) {
            let cut = || io::Error::new(io::ErrorKind::InvalidData, "a bundle is cut short");
            let entry = entry.ok_or_else(cut)?;
            if at >= index && at < to && take(at, entry).is_break() {
                return Ok(());
            }
        }
        index = start.saturating_add(TILE_WIDTH);
    }
    for chunk in chunks {
        for (entry, at) in chunk.entries().zip(chunk.first..) {
            let Some(entry) = entry else { continue };
            if at >= from && at < to && take(at, entry).is_break() {
                return Ok(());
            }
        }
    }
    Ok(())
}
