//! Every bound of the program, each with its reason. Nothing foreign is allocated, queued or kept
//! without one of these (invariants I8 and I14).

use std::time::Duration;

mod enrolment;
mod federation;
mod policy;
mod step_up;
mod tpm;
mod upstream;
mod workload_api;

pub use self::enrolment::*;
pub use self::federation::*;
pub use self::policy::*;
pub use self::step_up::*;
pub use self::tpm::*;
pub use self::upstream::*;
pub use self::workload_api::*;

/// A SPIFFE ID: the standard's own limit, in bytes (SPIFFE-ID §2.3).
pub const SPIFFE_ID_MAX: usize = 2048;
/// A trust domain name, in bytes (SPIFFE-ID §2.1).
pub const TRUST_DOMAIN_MAX: usize = 255;
/// One segment of a name, in bytes: fits any file system and any column of a screen.
pub const SEGMENT_MAX: usize = 128;
/// Segments of a name: deeper trees are a mistake, and index look-ups stay cheap.
pub const SEGMENTS_MAX: usize = 16;
/// A whole name, in bytes.
pub const NAME_MAX: usize = 512;

/// A secret's value, in bytes. Larger things belong in object storage, with their key here.
pub const VALUE_MAX: usize = 64 * 1024;
/// Secrets whose rows and ciphertext the vault keeps at hand.
pub const RECENT_MAX: usize = 1024;
/// Ciphertext that the vault keeps at hand, in bytes.
pub const RECENT_BYTES: usize = 8 * 1024 * 1024;
/// Labels of one secret.
pub const LABELS_MAX: usize = 64;
/// A label's name, in bytes.
pub const LABEL_KEY_MAX: usize = 128;
/// A label's value, in bytes.
pub const LABEL_VALUE_MAX: usize = 512;
/// Versions that one secret may hold; numbers are never reused.
pub const VERSIONS_MAX: usize = 1024;
/// Names that one `list` looks at, shown or not: each costs a decision.
pub const LIST_EXAMINED: usize = 10_000;
/// Names in one answer to `list`; a longer tree is read page by page.
pub const LIST_PAGE: usize = 1000;
/// Bytes of JSON after which a page of names ends: one more item may follow, so the head of an
/// answer stays under twice this.
pub const LIST_BYTES: usize = 256 * 1024;

/// Entries or devices in one answer; longer lists are read page by page.
pub const PAGE_ITEMS: usize = 1000;
/// Bytes of JSON of one such page: half of what an answer's head may have.
pub const PAGE_BYTES: usize = 512 * 1024;

/// Bytes of all rows in one snapshot, and so of one data backup: it is held in memory while it is
/// sealed.
pub const SNAPSHOT_MAX: usize = 256 * 1024 * 1024;
/// A file in an answer, in bytes: a backup with its header. Only operators are sent one.
pub const FILE_MAX: usize = SNAPSHOT_MAX + 1024 * 1024;
/// Pages of the store that are kept in memory, in bytes: the hot rows of 100,000 secrets.
pub const STORE_CACHE: usize = 64 * 1024 * 1024;
/// Up to this size, in bytes, a store is verified at every open: one read of the file. A larger
/// one is verified after an unclean stop or any change of its file.
pub const STORE_CHECK_ALWAYS: u64 = 64 * 1024 * 1024;
/// Changes of the store that a slow watcher may lag behind before it must read anew.
pub const STORE_EVENTS: usize = 1024;
/// Bytes that must stay free on the store's disk: room for the copies that one commit makes, so that
/// a full disk is met before the engine is touched.
pub const STORE_RESERVE: u64 = 16 * 1024 * 1024;
/// Opened namespace keys that are remembered; beyond it the oldest is forgotten and wiped.
pub const NAMESPACE_KEYS_CACHED: usize = 1024;
/// Epochs of one namespace's key that may live at once: two during a rotation, with room for those
/// that were interrupted.
pub const KEY_EPOCHS_MAX: usize = 16;
/// A seal's file, in bytes; a real one has about 500.
pub const SEAL_FILE_MAX: usize = 4096;
/// A passphrase, in bytes: longer than anybody types, one page of memory.
pub const PASSPHRASE_MAX: usize = 4096;
/// The JSON head of a frame to a sealed broker's admin socket, in bytes; an honest one has 13.
pub const ADMIN_HEAD_MAX: usize = 256;
/// Connections to the admin socket at once: one person, a probe, and room for both to be slow.
pub const ADMIN_CONNECTIONS: usize = 8;
/// `unseal` waits this long for the start that follows: a store that is verified whole takes minutes.
pub const UNSEAL_TIMEOUT: Duration = Duration::from_secs(10 * 60);
/// A start waits this long for the broker before it to let go of the directory.
pub const LOCK_TIMEOUT: Duration = Duration::from_secs(1);

/// The JSON head of one frame, in bytes: the largest honest one is an entry with 16 selectors.
pub const HEAD_MAX: usize = 16 * 1024;
/// The JSON head of one frame from the broker, in bytes: a page of 1000 names with their labels.
pub const REPLY_HEAD_MAX: usize = 1024 * 1024;
/// The raw body of one frame, in bytes: a page of the log is the largest beside bundles and backups.
pub const BODY_MAX: usize = 4 * 1024 * 1024;
/// The evidence of one report, in bytes: some forty facts are three thousand.
pub const EVIDENCE_MAX: usize = 64 * 1024;
/// A client's own reference for a request, in bytes; it is recorded, never trusted.
pub const CLIENT_REF_MAX: usize = 64;

/// KiB of answers of one port that wait for clients to take them, in all …
pub const WAITING_KIB: usize = 256 * 1024;
/// … and of one connection; a larger one alone is let through.
pub const WAITING_KIB_PER_CONNECTION: usize = 8 * 1024;

/// Streams in flight on one connection of an unproven client.
pub const STREAMS_AT_FIRST: u32 = 16;
/// Streams in flight on one connection after its first allowed request.
pub const STREAMS_PROVEN: u32 = 128;
/// Connection-wide receive window, in bytes.
pub const CONNECTION_WINDOW: u32 = 512 * 1024;
/// Receive window of one stream, in bytes.
pub const STREAM_WINDOW: u32 = 64 * 1024;
/// Bytes that a client which never reads can pin in one connection.
pub const SEND_WINDOW: u64 = 256 * 1024;
/// Handshakes that may wait before any check.
pub const INCOMING_MAX: usize = 1024;
/// Half-open handshakes above which an address must first prove itself (Retry).
pub const RETRY_ABOVE: usize = 256;
/// Connections of one identity: a fleet of workers fits, one runaway client does not.
pub const CONNECTIONS_PER_CALLER: usize = 256;
/// Threads that serve connections, at most, where the configuration names no number.
pub const SERVING_THREADS: usize = 8;
/// Threads that serve connections, at most, where it names one.
pub const SERVING_THREADS_MAX: usize = 64;
/// Connections of the whole broker.
pub const CONNECTIONS_MAX: usize = 16 * 1024;
/// A request's head must have arrived by then.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// A request's body must have arrived by then.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// An answer must have been taken by then.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// … and either for each MiB of its body this much later: a backup goes over a slow line too, and a
/// policy over a long one, of which no more than `STREAM_WINDOW` goes out a round trip.
pub const TIMEOUT_MIB: Duration = Duration::from_secs(1);
/// A client gives a broker this long to be reached and to accept it.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The second address of a host is tried this much after the first (RFC 8305 §5 says 250 ms).
pub const CONNECT_STAGGER: Duration = Duration::from_millis(250);
/// A client waits this long for an answer: longer than all of the broker's own bounds together.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// A client that ends waits this long for its goodbye to leave.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Streams in flight on an enrolment connection: one request and its one retry.
pub const APPLICANT_STREAMS: u32 = 2;
/// Windows of an enrolment connection, in bytes: one head and one token, several times over.
pub const APPLICANT_WINDOW: u32 = 32 * 1024;
/// An enrolment connection that says nothing is closed after this.
pub const APPLICANT_IDLE: Duration = Duration::from_secs(10);
/// Bytes of an unaccepted handshake that are kept; 0-RTT is off, so nothing large is honest.
pub const INCOMING_BUFFER: u64 = 16 * 1024;
/// The same, for all unaccepted handshakes together.
pub const INCOMING_BUFFER_TOTAL: u64 = 8 * 1024 * 1024;
/// A silent connection is closed after this.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// The agent keeps its connection alive with one packet per this.
pub const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Connections to the agent's local HTTP at once: each costs a task and two descriptors.
pub const LOCAL_CONNECTIONS: usize = 256;
/// … and of one user: nobody keeps everybody else out.
pub const LOCAL_CONNECTIONS_PER_UID: usize = 64;
/// Identities that one process is given at once: more are a mistake, and each costs a signature.
pub const IDENTITIES_MAX: usize = 32;
/// Processes that hold SVIDs from the Workload API at once: each is watched, at three descriptors.
pub const GIVEN_PROCESSES: usize = 1024;
/// … and of one user.
pub const GIVEN_PROCESSES_PER_UID: usize = 256;
/// Living SVIDs of one process, two rounds of all its identities: beyond it the oldest is taken back.
pub const GIVEN_PER_PROCESS: usize = 2 * IDENTITIES_MAX;
/// SVIDs of ended processes that wait until the broker is told; each ends by itself within a day.
pub const GIVEN_QUEUE: usize = 4 * 1024;
/// After SIGTERM, running requests have this long.
pub const DRAIN: Duration = Duration::from_secs(10);

/// Requests a second of one caller above which they are counted instead of recorded one by one.
pub const CALLER_RATE: u32 = 500;
/// Denials a second of one caller, likewise.
pub const DENIAL_RATE: u32 = 20;
/// Questions about itself and renewals a second of one caller; ordinary requests can't use these up.
pub const OWN_RATE: u32 = 250;
/// Reports a second of one device: each may bring 64 KiB of facts into the log.
pub const REPORT_RATE: u32 = 4;
/// Connections of one network on the enrolment port: a rack that enrols at once fits.
pub const APPLICANTS_PER_SOURCE: usize = 32;
/// A connection on the enrolment port that has not asked by then is closed.
pub const APPLICANT_LINGER: Duration = Duration::from_secs(3);
/// Handshakes of one network that may be under way.
pub const HALF_OPEN_PER_SOURCE: usize = 64;
/// Callers whose rates are remembered at once; beyond it whoever owes nothing is forgotten, and if
/// all owe, nobody new gets in.
pub const CALLERS_WATCHED: usize = 64 * 1024;

/// Decisions that may wait for the log's writer: 512 connections × 4, with room.
pub const LOG_QUEUE: usize = 4096;
/// One record of the log, in bytes: tlog-tiles has a 16-bit length.
pub const RECORD_MAX: usize = 65_535;
/// Bytes of records that one sync may cover: what a slow disk takes in well under a second.
pub const LOG_BATCH_BYTES: usize = 4 * 1024 * 1024;
/// Records that are worth a sync although more are coming.
pub const LOG_ENOUGH: u32 = 32;
/// While more records are coming, the time between two syncs of the log: fewer syncs, more records
/// in each.
pub const LOG_GAP: Duration = Duration::from_millis(1);
/// A checkpoint follows the first record after the last one by this.
pub const LOG_CHECKPOINT: Duration = Duration::from_secs(1);
/// Bytes of durable records that may wait in memory for their tiles.
pub const LOG_TAIL_BYTES: usize = 64 * 1024 * 1024;
/// Bytes after which tiles are written without waiting for the second to pass.
pub const LOG_TAIL_EAGER: usize = 16 * 1024 * 1024;
/// The smallest segment of the write-ahead log: the longest record fits with room.
pub const LOG_SEGMENT_MIN: u64 = 256 * 1024;
/// What was counted is summed up in the log this often.
pub const LOG_SUMMARY: Duration = Duration::from_secs(60);
/// Requests whose place in the log is remembered: 24 bytes each.
pub const LOG_REQUESTS: usize = 100_000;
/// Records that one look-up reads at most.
pub const LOG_SCAN: u64 = 262_144;
/// Records, and bytes of them, in one answer out of the log.
pub const LOG_PAGE: u32 = 10_000;
/// Bytes of one answer out of the log: they must fit a frame's body.
pub const LOG_PAGE_BYTES: usize = 3 * 1024 * 1024;
/// What a record tells of an ask beside action and object, in bytes: a few names and digests.
pub const RECORD_DETAIL: usize = 300;
/// Rules that one record names; deciding ones come first.
pub const RECORD_RULES: usize = 8;
/// Bytes of the log's disk that only operators may still use.
pub const LOG_RESERVE: u64 = 64 * 1024 * 1024;

/// Certificates in the chain of a stranger; ours have two.
pub const CHAIN_MAX: usize = 4;
/// Roots of one trust domain: an old, a present and a coming one, several times over.
pub const ROOTS_MAX: usize = 16;
/// A SPIFFE bundle document, in bytes: as many keys as it may have, with certificates several times
/// the size of ordinary ones.
pub const BUNDLE_DOCUMENT_MAX: usize = 1024 * 1024;
/// A map of such documents, in bytes.
pub const BUNDLE_MAP_MAX: usize = 8 * 1024 * 1024;
/// Trust domains in one such map; federation with more is no longer done by hand.
pub const BUNDLE_MAP_DOMAINS: usize = 256;
/// Elements of one bundle document, of any purpose: old, present and coming keys, several times over.
pub const BUNDLE_KEYS_MAX: usize = 64;
/// Objects within objects in a bundle document; an honest one has four levels, a map of them six.
pub const BUNDLE_DEPTH: usize = 8;
/// The id of a key that signs tokens, in bytes; a digest in hex has 64.
pub const KEY_ID_MAX: usize = 256;
/// The modulus of a key that signs tokens, in bits: below it is weak, …
pub const RSA_BITS_MIN: usize = 2048;
/// … above it a stranger's key costs us too much.
pub const RSA_BITS_MAX: usize = 8192;
/// A JWT-SVID, in bytes: what HTTP servers take as one header.
pub const JWT_MAX: usize = 16 * 1024;
/// Objects within objects in the claims of a JWT-SVID.
pub const JWT_DEPTH: usize = 8;
/// Audiences of one JWT-SVID, as in other verifiers of the field.
pub const JWT_AUDIENCES_MAX: usize = 32;
/// One audience of a JWT-SVID of ours, in bytes: a URL or a SPIFFE ID. It stands in the log.
pub const JWT_AUDIENCE_MAX: usize = 512;
/// Life of a JWT-SVID. Whoever holds it can use it, and nobody is asked: it ends by expiry only.
pub const JWT_TTL: Duration = Duration::from_secs(5 * 60);
/// A key for JWT-SVIDs that came to an authority that signs already is published this long before it
/// signs: ten times the longest wait between two looks of an agent.
pub const JWT_KEY_REST: Duration = Duration::from_secs(5 * 60);
/// The name of our issuer for verifiers that know no SPIFFE, in bytes; it stands in every token.
pub const OIDC_ISSUER_MAX: usize = 256;
/// How long others may keep our keys for JWT-SVIDs before they look again.
pub const JWKS_FRESH: Duration = Duration::from_secs(5 * 60);
/// A JWT-SVID may have been issued this much in our future, by the clock of whoever issued it. Its
/// `exp` and `nbf` are judged exactly.
pub const JWT_ISSUED_SKEW: Duration = Duration::from_secs(60);
/// One file of a credentials directory, in bytes: a chain of the largest certificates, as PEM.
pub const CREDENTIALS_FILE_MAX: usize = 512 * 1024;
/// One certificate of a stranger, in bytes.
pub const CERTIFICATE_MAX: usize = 16 * 1024;

/// Life of an X.509-SVID of a workload.
pub const SVID_TTL: Duration = Duration::from_secs(60 * 60);
/// Life of an agent's certificate.
pub const AGENT_TTL: Duration = Duration::from_secs(60 * 60);
/// Life of an operator's certificate.
pub const OPERATOR_TTL: Duration = Duration::from_secs(12 * 60 * 60);
/// How long an operator may renew with the same key.
pub const OPERATOR_RENEW: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// How long a device that was away may come back with its key.
pub const REENROLL_WINDOW: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// Clocks differ: `notBefore` is this much earlier.
pub const BACKDATE: Duration = Duration::from_secs(10);
/// Wall and boot clock may drift apart by this between two looks; more is an alarm.
pub const CLOCK_STEP: Duration = Duration::from_secs(5);
/// After a step of a clock both must have agreed for this long in a row before anything is issued
/// again, and before the new time is held on to.
pub const CLOCK_CALM: Duration = Duration::from_secs(60);

/// Life of an authority's root certificate. Its successor is published at half of it.
pub const CA_TTL: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// Authorities that are trusted at once: one that signs, one to come, and two that end.
pub const AUTHORITIES_MAX: usize = 4;
/// Revoked authorities whose names are kept for whoever asks.
pub const REVOKED_AUTHORITIES_MAX: usize = 32;
/// The longest life of a certificate: an authority that signs no more has nothing alive after it.
pub const LEAF_TTL_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// Devices that one answer names as still to be waited for; the rest is a number.
pub const PENDING_SHOWN: usize = 20;
/// Life of a token for an operator: long enough for another time zone.
pub const OPERATOR_TOKEN_TTL: Duration = Duration::from_secs(24 * 60 * 60);
/// Wall and boot clock may drift apart by this since the authority last trusted them; beyond it
/// nothing is signed.
pub const ISSUE_CLOCK_STEP: Duration = Duration::from_secs(5 * 60);
/// When a device was last seen is kept to the hour: renewals must not become one write each.
pub const LAST_SEEN_STEP: Duration = Duration::from_secs(60 * 60);
/// A join token's text, in bytes: one line of a terminal's paste, and the enrolment body's limit.
pub const TOKEN_MAX: usize = 1024;
/// Tokens kept at once, spent ones until their end included.
pub const TOKENS_MAX: usize = 4096;
/// Wrong tokens in a minute that are told apart; beyond it the answer is `limited`.
pub const GUESSES_MAX: u32 = 60;
/// An agent's question for changes is answered after this at the latest, so that a wake-up which was
/// lost, by whatever fault, is made up for.
pub const PUSH_WAIT: Duration = Duration::from_secs(60);
/// Questions for changes that wait on one connection: an agent has one.
pub const PUSH_PER_CONNECTION: usize = 2;
/// … of one device: the connection that ends and the one that takes its place.
pub const PUSH_PER_DEVICE: usize = 4;
/// … and in all: as many as connections.
pub const PUSH_MAX: usize = CONNECTIONS_MAX;
/// Changes of entries that are remembered, so that agents are told these only: 24 bytes each. Beyond
/// it all are forgotten, and whoever was behind reads its list once.
pub const CHANGES_MAX: usize = 64 * 1024;
/// Answers with news that an agent takes one right after the other …
pub const PUSH_BURST: u32 = 16;
/// … and then one in this time: what comes faster comes together.
pub const PUSH_EVERY: Duration = Duration::from_millis(250);
/// Devices of one trust domain: each is in memory.
pub const DEVICES_MAX: usize = 100_000;
/// Registration entries of one trust domain: each is in memory, a small one at about a KiB.
pub const ENTRIES_MAX: usize = 64 * 1024;
/// Entries that one `revoke` may touch, so that one commit stays small.
pub const ENTRIES_PER_ID: usize = 256;
/// A certificate's serial number, in bytes (RFC 5280 §4.1.2.2).
pub const SERIAL_MAX: usize = 20;
/// The longest life that an entry may give its SVIDs: that of any revoked serial number in memory.
pub const SVID_TTL_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// Single SVIDs that are revoked and have not ended by themselves yet: each is a row and a place in
/// memory.
pub const DENIED_MAX: usize = 64 * 1024;
/// … and of one device, whose processes come and go.
pub const DENIED_PER_DEVICE: usize = 4 * 1024;
/// Agents that the answer to a revocation names; it counts all.
pub const PENDING_LISTED: usize = 100;
/// SVIDs that one `retract` names.
pub const RETRACT_MAX: usize = 64;
/// Rows of ended SVIDs that one change takes away beside its own.
pub const DENIED_SWEPT: usize = 256;
/// Public keys of living SVIDs that are remembered, so that one key serves one identity.
pub const LIVING_KEYS_MAX: usize = 128 * 1024;

/// Facts of one report.
pub const FACTS_MAX: usize = 128;
/// A fact that is text, in bytes: a list of modules fits, a file does not.
pub const FACT_TEXT_MAX: usize = 512;
/// Objects within objects in evidence; honest evidence has four levels.
pub const EVIDENCE_DEPTH: usize = 8;
/// A challenge that was not answered by then is void.
pub const CHALLENGE_TTL: Duration = Duration::from_secs(30);
/// Life of an agent's session key; it costs one signature of the device key to make a new one.
pub const SESSION_KEY_LIFE: Duration = Duration::from_secs(60 * 60);
/// Session keys of one device that were replaced and are remembered, so that none comes back.
pub const SESSION_KEYS_KEPT: usize = 8;
/// Devices whose standing is held at once; beyond it the one that was silent longest is forgotten.
pub const STANDINGS_MAX: usize = 256 * 1024;
/// Changes of posture that a slow listener may be behind before it must look at everything anew.
pub const POSTURE_CHANGES: usize = 1024;
/// One `posture.toml`, in bytes.
pub const POSTURE_FILE_MAX: usize = 256 * 1024;
/// Requirements of one profile, inherited ones included: an appraisal stays far under a millisecond.
pub const REQUIREMENTS_MAX: usize = 256;
/// `any` and `all` within each other.
pub const REQUIREMENT_DEPTH: usize = 8;
/// The largest `max_age`: older evidence than a week says nothing.
pub const MAX_AGE_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Selectors of one registration entry.
pub const SELECTORS_MAX: usize = 16;
/// Text of all selectors of one entry, in bytes: a few long paths. Every agent of the class holds it.
pub const SELECTOR_BYTES_MAX: usize = 4 * 1024;
