//! Limits of the SPIFFE Workload API that an agent serves.

use std::time::Duration;

use super::JWT_MAX;

/// Connections to the SPIFFE Workload API at once: each workload holds one for its whole life.
pub const WORKLOAD_CONNECTIONS: usize = 2560;
/// … and of one user, a quarter: ten thousand streams.
pub const WORKLOAD_CONNECTIONS_PER_UID: usize = 640;
/// Streams in flight on one connection to the Workload API: a library has two or three.
pub const WORKLOAD_STREAMS: u32 = 16;
/// Headers of one call to the Workload API, in bytes: honest ones have three hundred.
pub const WORKLOAD_HEADERS: u32 = 16 * 1024;
/// The request of one call to the Workload API, in bytes: a token that shall be validated, and its
/// audience.
pub const WORKLOAD_REQUEST: usize = JWT_MAX + 4 * 1024;
/// Receive windows of the Workload API, in bytes, for a stream and for a connection.
pub const WORKLOAD_WINDOW: u32 = 64 * 1024;
/// Calls to the Workload API that one user may make at once …
pub const WORKLOAD_CALLS_BURST: u32 = 256;
/// … and a second after that: each may cost the broker a signature in the agent's own name, and this
/// is a quarter of what an agent may ask for.
pub const WORKLOAD_CALLS_RATE: u32 = 128;
/// A connection to the Workload API is asked for a sign of life this often, and must give it within
/// the same time.
pub const WORKLOAD_KEEP_ALIVE: Duration = Duration::from_secs(20);
/// One question of gRPC reflection, in bytes: a name.
pub const REFLECTION_REQUEST: usize = 2 * 1024;
/// Questions of one reflection call: a tool asks for each of the socket's few services once.
pub const REFLECTION_QUESTIONS: usize = 64;
/// A reflection call ends when no question came for this long: a tool asks at once.
pub const REFLECTION_SILENCE: Duration = Duration::from_secs(10);
/// Containers whose images an agent remembers: more than run on any honest node at once.
pub const IMAGES_MAX: usize = 1024;
/// How long a container runtime has for its answer.
pub const RUNTIME_MAX: Duration = Duration::from_secs(2);
/// Containers that a runtime is asked for at once.
pub const RUNTIME_ASKED_MAX: usize = 16;
/// A container whose image was not said is asked for again after this.
pub const RUNTIME_PAUSE: Duration = Duration::from_secs(5);
/// The answer of a container runtime, in bytes: mounts, labels and annotations stand in it.
pub const RUNTIME_ANSWER: u32 = 1024 * 1024;
/// Its headers.
pub const RUNTIME_HEADERS: u32 = 16 * 1024;
/// A hint, in bytes: what every client must be able to take (SPIFFE Workload API §5.2.1).
pub const HINT_MAX: usize = 1024;
