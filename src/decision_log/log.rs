//! The handle on the decision log: decisions go in, rulings come out, once they are durable.

use std::cell::RefCell;
use std::fs::File;
use std::future::Future;
use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use super::batch::Wait;
use super::begin::{begin, first_segment, record_gap, take_directory};
use super::frame::BLOCK;
use super::grant::Ruling;
use super::line::Line;
use super::merkle::leaf;
use super::note::Note;
use super::proof::{self, ProofError, check_consistency, check_inclusion};
use super::publish::Publisher;
use super::query;
use super::queue::{Rank, RecordError};
use super::record::{self, Around};
use super::recover::{Base, OpenLogError, Replay, base, replay};
use super::shared::{Parts, Shared};
use super::signed_note::{LogKey, VerifierKey};
use super::sink::{Files, Sink};
use super::stored::{Stored, TileHashes};
use super::writer::{Committer, Place, Writer, batch_bytes};
use crate::identity::CallerKind;
use crate::model::limits::LOG_SEGMENT_MIN;
use crate::model::{Ask, Clock, Digest, RequestId, Target};
use crate::policy::Decision;

/// Where a log lies and what it may use.
#[derive(Debug, Clone)]
pub struct LogSettings {
    /// Its directory; made when it is not there, 0700.
    pub dir: PathBuf,
    /// `<trust domain>/decisions/<epoch>`: the log's name in every checkpoint.
    pub origin: String,
    /// Bytes of the disk that only operators may still use (`limits::LOG_RESERVE`).
    pub reserve: u64,
    /// Bytes of one segment of the write-ahead log; taken from the disk at once.
    pub segment_bytes: u64,
}

/// How far the log goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Durable records.
    pub size: u64,
    /// The root over them.
    pub root: Digest,
}

/// The handle; cheap to clone. The log is closed when the last one is dropped.
#[derive(Debug, Clone)]
pub struct DecisionLog(Arc<Open>);

#[derive(Debug)]
struct Open {
    shared: Arc<Shared>,
    vkey: String,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.shared.queue.close();
    }
}

thread_local! {
    /// The buffer that lines are laid out in before they are handed over.
    static SPARE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl DecisionLog {
    /// Opens or creates the log and recovers what a crash left. The directory is locked until the
    /// writer ends.
    ///
    /// # Errors
    /// Says which file is damaged and where, who holds the lock, or what can't be read or written.
    pub fn open(
        settings: LogSettings,
        key: LogKey,
        clock: Arc<dyn Clock>,
    ) -> Result<(Self, Writer), OpenLogError> {
        let lock = take_directory(&settings.dir)?;
        let sink = Arc::new(Files::new(&settings.dir));
        Self::open_with(settings, key, clock, sink, lock)
    }

    pub(super) fn open_with(
        settings: LogSettings,
        key: LogKey,
        clock: Arc<dyn Clock>,
        sink: Arc<dyn Sink>,
        lock: File,
    ) -> Result<(Self, Writer), OpenLogError> {
        let LogSettings { dir, origin, reserve, segment_bytes } = settings;
        let segment_bytes = segment_bytes.max(LOG_SEGMENT_MIN) / BLOCK * BLOCK;
        let vkey = key.vkey(&origin);
        let verifier = VerifierKey::parse(&vkey).map_err(|_| OpenLogError::Origin)?;
        let stored = Stored::new(&dir);
        sink.remove("tmp").map_err(OpenLogError::io(&dir))?;
        let Base { published, bundle } = match base(&stored, &dir, &verifier)? {
            Some(base) => base,
            None => begin(&*sink, &dir, &origin, &key)?,
        };
        let size = published.edge.size();
        let mut replay = match replay(&dir, size)? {
            Some(replay) => replay,
            None => first_segment(&*sink, &dir, size, (segment_bytes, reserve))?,
        };
        let mut segment = sink.open(&replay.path).map_err(OpenLogError::io(&dir))?;
        let cut = replay.cut.map(|to| to.saturating_sub(replay.at));
        if let Some(bytes) = cut {
            let zeros = vec![0; usize::try_from(bytes).unwrap_or(0)];
            let wiped = segment.write_at(&zeros, replay.at).and_then(|()| segment.sync());
            wiped.map_err(OpenLogError::io(&dir.join(&replay.path)))?;
        }
        let shared = Arc::new(Shared::new(Parts {
            sink,
            stored,
            clock,
            origin,
            reserve,
            batch_bytes: batch_bytes(segment_bytes),
            published,
            chunks: std::mem::take(&mut replay.chunks),
            closed: std::mem::take(&mut replay.closed),
        }));
        let Replay { path, end, at, index, batch, .. } = replay;
        let place = Place { segment, path, at, end, index, batch };
        let mut committer = Committer::new(Arc::clone(&shared), place, segment_bytes);
        if let Some(cut_bytes) = cut {
            record_gap(&shared, &mut committer, cut_bytes, &dir)?;
        }
        shared.measure().map_err(OpenLogError::io(&dir))?;
        let publisher = Publisher::new(Arc::clone(&shared), key, bundle);
        let log = Self(Arc::new(Open { shared, vkey }));
        Ok((log, Writer { committer, publisher, lock }))
    }

    /// Writes the decision down; the ruling, once that is durable. A report that changes nothing is
    /// counted, not recorded, when it is allowed: its grant stands on no record.
    ///
    /// # Errors
    /// Nothing was ruled: the request must be refused.
    pub fn record(
        &self,
        decision: Decision,
    ) -> impl Future<Output = Result<Ruling, RecordError>> + Send + use<> {
        let wait = self.hand_over(&decision);
        // One place on the heap, from here to the grant that is made of it.
        let decision = Box::new(decision);
        async move {
            let index = match wait? {
                Some(wait) => Some(wait.await?),
                None => None,
            };
            Ok(Ruling::on(decision, index))
        }
    }

    /// Hands a decision to the writer; nothing to wait for where it is only counted.
    fn hand_over(&self, decision: &Decision) -> Result<Option<Wait>, RecordError> {
        let shared = &self.0.shared;
        let rank = match decision.caller().kind() {
            CallerKind::Operator | CallerKind::Broker(_) => Rank::Reserved,
            CallerKind::Agent | CallerKind::Applicant | CallerKind::Workload => Rank::Ordinary,
        };
        if !shared.admits(rank) {
            return Err(RecordError::Full);
        }
        if is_heartbeat(decision) {
            if !shared.queue.is_open() {
                return Err(RecordError::Broken);
            }
            self.count(decision.caller().id().as_str(), "report");
            return Ok(None);
        }
        let wait = SPARE.with_borrow_mut(|spare| {
            let mut line = Line::over(std::mem::take(spare));
            record::decision(&mut line, &shared.origin, decision);
            *spare = line.into_bytes();
            shared.queue.submit(spare, Some(decision.id()), rank)
        })?;
        Ok(Some(wait))
    }

    /// Appends a note; its index, once it is durable.
    ///
    /// # Errors
    /// It was not written down.
    pub async fn note(&self, note: Note) -> Result<u64, RecordError> {
        let shared = &self.0.shared;
        let (request, rank) = match &note {
            Note::Identity { request, .. } | Note::NotReleased { request, .. } => {
                (Some(*request), Rank::Reserved)
            }
            Note::Posture { .. } | Note::Summary { .. } => (None, Rank::Ordinary),
            Note::Alarm { .. } | Note::Gap { .. } | Note::Unsealed { .. } => (None, Rank::Reserved),
        };
        let head = matches!(note, Note::Unsealed { .. }).then(|| shared.head());
        let around = Around { origin: &shared.origin, at: shared.clock.now().wall(), head };
        self.submit(&record::note(&note, &around), request, rank)?.await
    }

    /// Appends the bytes of one record; its index, once it is durable.
    pub(super) fn submit(
        &self,
        record: &[u8],
        request: Option<RequestId>,
        rank: Rank,
    ) -> Result<impl Future<Output = Result<u64, RecordError>> + use<>, RecordError> {
        if !self.0.shared.admits(rank) {
            return Err(RecordError::Full);
        }
        self.0.shared.queue.submit(record, request, rank)
    }

    /// Counts something that is not recorded one by one, such as a refused handshake; `caller` is a
    /// SPIFFE ID or a network prefix. Summed up in the log each minute.
    pub fn count(&self, caller: &str, what: &'static str) {
        self.0.shared.counts.add(caller, what);
    }

    /// Size and root of what is durable. Each record is hashed for this once, however often it is
    /// asked.
    pub fn head(&self) -> Head {
        let (size, root) = self.0.shared.head();
        Head { size, root: Digest(root) }
    }

    /// Durable records.
    pub fn size(&self) -> u64 {
        self.0.shared.size()
    }

    /// The last signed checkpoint, and the size that it covers.
    pub fn checkpoint(&self) -> (u64, Arc<str>) {
        let (published, _) = self.0.shared.view();
        (published.edge.size(), published.checkpoint)
    }

    /// The log's verifier key.
    pub fn vkey(&self) -> &str {
        &self.0.vkey
    }

    /// Durable records from index `from` on, at most `limit`, as JSON text; with `holding`, only
    /// those that hold this text. Also the index to go on from; when it is the log's size, that is
    /// all.
    ///
    /// # Errors
    /// `Broken` when what was written can't be read back.
    pub fn read(
        &self,
        from: u64,
        limit: u32,
        holding: Option<&str>,
    ) -> Result<(Vec<(u64, String)>, u64), RecordError> {
        query::read(&self.0.shared, from, limit, holding).map_err(unreadable)
    }

    /// Hands over the durable records of `from .. to` in order, as long as `take` says so.
    ///
    /// # Errors
    /// `Broken` when what was written can't be read back.
    pub fn walk(
        &self,
        from: u64,
        to: u64,
        take: impl FnMut(u64, &[u8]) -> ControlFlow<()>,
    ) -> Result<(), RecordError> {
        query::each(&self.0.shared, from, to, take).map_err(unreadable)
    }

    /// The bytes of one record, if it is durable.
    ///
    /// # Errors
    /// `Broken` when what was written can't be read back.
    pub fn record_at(&self, index: u64) -> Result<Option<Vec<u8>>, RecordError> {
        query::record(&self.0.shared, index).map_err(unreadable)
    }

    /// The records of one request: the newest part of the log first, within a bound.
    ///
    /// # Errors
    /// `Broken` when what was written can't be read back.
    pub fn find(&self, request: RequestId) -> Result<Vec<(u64, String)>, RecordError> {
        query::find(&self.0.shared, request).map_err(unreadable)
    }

    /// The receipt of a record (C2SP tlog-proof): its path to the last signed checkpoint.
    ///
    /// # Errors
    /// `Beyond` until a checkpoint covers the record, which takes about a second.
    pub fn prove(&self, index: u64) -> Result<String, ProofError> {
        let (published, _) = self.0.shared.view();
        let size = published.edge.size();
        let mut tiles = TileHashes::new(&self.0.shared.stored, size);
        let path = proof::inclusion(&mut tiles, index, size)?;
        let record = query::record(&self.0.shared, index).map_err(ProofError::Tiles)?;
        let leaf = leaf(&record.ok_or(ProofError::Beyond(index, size))?);
        match check_inclusion(index, size, &leaf, &published.edge.root(), &path) {
            true => Ok(proof::receipt(index, &path, &published.checkpoint)),
            false => Err(ProofError::Mismatch),
        }
    }

    /// Proof that the last checkpoint only adds to the tree of `old` records with this root.
    ///
    /// # Errors
    /// `Mismatch` when it does not: one of the two is a fork.
    pub fn prove_consistency(
        &self,
        old: u64,
        old_root: &Digest,
    ) -> Result<(Vec<Digest>, Head), ProofError> {
        let (published, _) = self.0.shared.view();
        let (size, root) = (published.edge.size(), published.edge.root());
        let mut tiles = TileHashes::new(&self.0.shared.stored, size);
        let path = proof::consistency(&mut tiles, old, size)?;
        if !check_consistency(old, &old_root.0, size, &root, &path) {
            return Err(ProofError::Mismatch);
        }
        Ok((path.into_iter().map(Digest).collect(), Head { size, root: Digest(root) }))
    }

    /// Ready for decisions: the writer runs, nothing has failed, there is room for everyone.
    pub fn is_ready(&self) -> bool {
        self.0.shared.is_ready()
    }

    /// No more records. What waits is still written; then the writer ends.
    pub fn close(&self) {
        self.0.shared.queue.close();
    }

    #[cfg(test)]
    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.0.shared
    }
}

fn unreadable(error: io::Error) -> RecordError {
    tracing::error!(%error, "the decision log can't be read back");
    RecordError::Broken
}

/// A report that was allowed and changes nothing.
fn is_heartbeat(decision: &Decision) -> bool {
    decision.allowed()
        && matches!(**decision.ask(), Ask::Report { .. })
        && matches!(decision.target(), Target::Evidence { unchanged: true })
}
