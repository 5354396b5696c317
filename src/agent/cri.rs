//! One question to the container runtime of this node, in the words of Kubernetes' Container Runtime
//! Interface (`runtime.v1.RuntimeService/ContainerStatus`): which image does this container run?
//!
//! Only fields that are needed are read; their numbers are those of cri-api's `runtime/v1/api.proto`.
//! The runtime is believed because its socket belongs to root, or to the agent's own user; whatever
//! it says in another form than expected, too late or at too great a length is no answer. A tag is
//! never read: it names what somebody may change.

use std::io;
use std::path::Path;
use std::pin::pin;

use bytes::Bytes;
use prost::Message;
use tokio::net::UnixStream;
use tonic::codegen::http;

use crate::model::Digest;
use crate::model::limits::{RUNTIME_ANSWER, RUNTIME_HEADERS, RUNTIME_MAX};

/// The method; the authority of a Unix socket means nothing.
const METHOD: &str = "http://localhost/runtime.v1.RuntimeService/ContainerStatus";
/// The flag of compression, and the length.
const PREFIX: usize = 5;
/// `NOT_FOUND` of gRPC.
const NOT_FOUND: &str = "5";
/// What stands between an image's name and its digest.
const AT_DIGEST: &str = "@sha256:";
/// A name with its registry; longer ones name nothing.
const NAME_MAX: usize = 512;

/// Why the image of a container is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageUnknown {
    /// Too many others are being asked for.
    #[error("too many containers are being asked for at once")]
    Busy,
    /// The socket is somebody else's.
    #[error("the runtime's socket is served by uid {0}, neither root nor the agent's own user")]
    Foreign(u32),
    /// No answer in time.
    #[error("the runtime did not answer in time")]
    Late,
    /// The runtime has no such container.
    #[error("the runtime does not know this container")]
    NotKnown,
    /// Something else than the interface has.
    #[error("the runtime's answer can't be: {0}")]
    Odd(&'static str),
    /// It said no.
    #[error("the runtime refused, with gRPC status {0}")]
    Refused(u8),
    /// It answered, without a digest.
    #[error("the runtime names no digest of this container's image")]
    Unnamed,
    /// Nobody is there.
    #[error("the runtime can't be reached: {0}")]
    Unreachable(io::ErrorKind),
}

#[derive(Clone, PartialEq, Message)]
struct Question {
    #[prost(string, tag = "1")]
    container_id: String,
}

#[derive(Clone, PartialEq, Message)]
struct Answer {
    #[prost(message, optional, tag = "1")]
    status: Option<Status>,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(string, tag = "1")]
    id: String,
    /// 0 created, 1 running, 2 exited, 3 unknown.
    #[prost(int32, tag = "3")]
    state: i32,
    /// Name and digest of the image as it was pulled; or something else.
    #[prost(string, tag = "9")]
    image_ref: String,
}

/// The digest of the image that a container runs: of what was pulled, which for an image of several
/// platforms is its index.
///
/// # Errors
/// When the runtime at this socket does not say it.
pub async fn image_of(socket: &Path, container: &Digest) -> Result<Digest, ImageUnknown> {
    let asking = ask(socket, container);
    tokio::time::timeout(RUNTIME_MAX, asking).await.unwrap_or(Err(ImageUnknown::Late))
}

async fn ask(socket: &Path, container: &Digest) -> Result<Digest, ImageUnknown> {
    let unreachable = |why: io::Error| ImageUnknown::Unreachable(why.kind());
    let stream = UnixStream::connect(socket).await.map_err(unreachable)?;
    let owner = stream.peer_cred().map_err(unreachable)?.uid();
    if owner != 0 && owner != nix::unistd::geteuid().as_raw() {
        return Err(ImageUnknown::Foreign(owner));
    }
    let (client, connection) = h2::client::Builder::new()
        .enable_push(false)
        .initial_window_size(RUNTIME_ANSWER)
        .initial_connection_window_size(RUNTIME_ANSWER)
        .max_header_list_size(RUNTIME_HEADERS)
        .handshake(stream)
        .await
        .map_err(|_| ImageUnknown::Odd("it is no HTTP/2"))?;
    // A connection that has ended has given its streams all that came, and their end.
    let driving = async {
        let _ = connection.await;
        std::future::pending::<std::convert::Infallible>().await
    };
    tokio::select! {
        biased;
        answered = converse(client, container) => answered,
        never = driving => match never {},
    }
}

async fn converse(
    client: h2::client::SendRequest<Bytes>,
    container: &Digest,
) -> Result<Digest, ImageUnknown> {
    let broken = |_| ImageUnknown::Odd("it broke off");
    let request = http::Request::post(METHOD)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .map_err(|_| ImageUnknown::Odd("no question can be made"))?;
    let mut client = client.ready().await.map_err(broken)?;
    let (answer, mut sending) = client.send_request(request, false).map_err(broken)?;
    sending.send_data(question(container), true).map_err(broken)?;
    let (head, body) = answer.await.map_err(broken)?.into_parts();
    if head.status != http::StatusCode::OK {
        return Err(ImageUnknown::Odd("it is no gRPC"));
    }
    let mut body = pin!(body);
    let mut octets = Vec::new();
    while let Some(some) = body.data().await {
        let some = some.map_err(broken)?;
        if octets.len().saturating_add(some.len()) > octets_max() {
            return Err(ImageUnknown::Odd("it is too long"));
        }
        octets.extend_from_slice(&some);
        body.flow_control().release_capacity(some.len()).map_err(broken)?;
    }
    let trailers = body.trailers().await.map_err(broken)?.unwrap_or_default();
    let status = trailers.get("grpc-status").or_else(|| head.headers.get("grpc-status"));
    let status = status.and_then(|status| status.to_str().ok());
    match status.ok_or(ImageUnknown::Odd("it has no status"))? {
        "0" => read(&octets, container),
        NOT_FOUND => Err(ImageUnknown::NotKnown),
        other => {
            let odd = ImageUnknown::Odd("its status is none");
            Err(other.parse().map_or(odd, ImageUnknown::Refused))
        }
    }
}

fn octets_max() -> usize {
    usize::try_from(RUNTIME_ANSWER).unwrap_or(usize::MAX)
}

/// The question in its frame.
fn question(container: &Digest) -> Bytes {
    let message = Question { container_id: container.to_string() }.encode_to_vec();
    let length = u32::try_from(message.len()).unwrap_or_default(); // 66
    [&[0][..], &length.to_be_bytes(), &message].concat().into()
}

/// What one framed answer says of the container that was asked for.
pub(super) fn read(octets: &[u8], container: &Digest) -> Result<Digest, ImageUnknown> {
    let odd = ImageUnknown::Odd;
    let (prefix, message) = octets.split_at_checked(PREFIX).ok_or(odd("it is no message"))?;
    let [0, length @ ..] = prefix else { return Err(odd("it is no plain message")) };
    let length = <[u8; 4]>::try_from(length).map(u32::from_be_bytes);
    if length.ok().and_then(|length| usize::try_from(length).ok()) != Some(message.len()) {
        return Err(odd("it is not one message"));
    }
    let answer = Answer::decode(message).map_err(|_| odd("it is no `ContainerStatus`"))?;
    let status = answer.status.ok_or(odd("it has no status of a container"))?;
    if status.id != container.to_string() {
        return Err(odd("it is of another container"));
    }
    if !matches!(status.state, 0 | 1) {
        return Err(odd("the container does not run"));
    }
    digest_in(&status.image_ref).ok_or(ImageUnknown::Unnamed)
}

/// The digest in `name@sha256:…`. A bare `sha256:…` is an id that the runtime gave, and no name that
/// others know the image by.
fn digest_in(image: &str) -> Option<Digest> {
    let (name, digest) = image.split_once(AT_DIGEST)?;
    let plain = |b: u8| {
        b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'/' | b':' | b'[' | b']')
    };
    let named = (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(plain);
    named.then(|| Digest::parse(digest).ok()).flatten()
}

#[cfg(test)]
pub(super) mod tests;
