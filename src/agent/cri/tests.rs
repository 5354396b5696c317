//! A server that plays containerd, and what is made of its answers.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use tokio::net::UnixListener;

use super::*;

pub const IMAGE: [u8; 32] = [0xcd; 32];

/// What the server does with a question.
#[derive(Clone)]
pub enum Does {
    /// Answers with these octets and this status.
    Say(Vec<u8>, &'static str),
    /// Only a head, with this status in it.
    Refuse(&'static str),
    /// Sends zeros for ever.
    Flood,
    /// Nothing.
    Wait,
    /// Closes.
    Close,
    /// Speaks something else.
    Garbage,
}

/// A runtime on a Unix socket; counts what it is asked.
pub struct Runtime {
    pub socket: PathBuf,
    pub asked: Arc<AtomicUsize>,
    _dir: tempfile::TempDir,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Runtime {
    pub fn that(does: impl Fn(&str) -> Does + Send + Sync + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("containerd.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let (count, does) = (asked.clone(), Arc::new(does));
        let serving = tokio::spawn(async move {
            let mut all = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                all.spawn(serve(stream, count.clone(), does.clone()));
            }
        });
        Self { socket, asked, _dir: dir, serving }
    }

    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

async fn serve(
    stream: UnixStream,
    count: Arc<AtomicUsize>,
    does: Arc<impl Fn(&str) -> Does + Send + Sync + 'static>,
) {
    if matches!(does(""), Does::Garbage) {
        use tokio::io::AsyncWriteExt as _;
        let mut stream = stream;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nnot what you asked for").await;
        return;
    }
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((request, respond))) = connection.accept().await {
        count.fetch_add(1, Ordering::SeqCst);
        assert_eq!(request.uri().path(), "/runtime.v1.RuntimeService/ContainerStatus");
        assert_eq!(request.headers()["content-type"], "application/grpc");
        let does = does.clone();
        let answering = answer(request, respond, does);
        tokio::select! {
            close = answering => if close { return },
            _ = async { while connection.accept().await.is_some() {} } => return,
        }
    }
}

async fn answer(
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    does: Arc<impl Fn(&str) -> Does + Send + Sync + 'static>,
) -> bool {
    let mut body = request.into_body();
    let mut octets = Vec::new();
    while let Some(Ok(some)) = body.data().await {
        octets.extend_from_slice(&some);
    }
    let question = Question::decode(&octets[PREFIX..]).unwrap();
    let head = || http::Response::builder().header("content-type", "application/grpc");
    let trailers = |status: &'static str| {
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", http::HeaderValue::from_static(status));
        trailers
    };
    match does(&question.container_id) {
        Does::Say(octets, status) => {
            let mut sending = respond.send_response(head().body(()).unwrap(), false).unwrap();
            sending.send_data(octets.into(), false).unwrap();
            sending.send_trailers(trailers(status)).unwrap();
        }
        Does::Refuse(status) => {
            let head = head().header("grpc-status", status).body(()).unwrap();
            respond.send_response(head, true).unwrap();
        }
        Does::Flood => {
            let mut sending = respond.send_response(head().body(()).unwrap(), false).unwrap();
            loop {
                sending.reserve_capacity(16 * 1024);
                let room = std::future::poll_fn(|cx| sending.poll_capacity(cx)).await;
                let Some(Ok(room)) = room else { return false };
                sending.send_data(vec![0; room].into(), false).unwrap();
            }
        }
        Does::Wait => std::future::pending().await,
        Does::Close | Does::Garbage => return true,
    }
    std::future::pending().await // until the client has taken it and goes
}

pub fn framed(status: &[u8]) -> Vec<u8> {
    let length = u32::try_from(status.len()).unwrap().to_be_bytes();
    [&[0][..], &length, status].concat()
}

/// An honest answer, with fields around those that are read.
pub fn says(id: &str, state: i32, image_ref: &str) -> Vec<u8> {
    let mut status = Status { id: id.into(), state, image_ref: image_ref.into() }.encode_to_vec();
    status.extend_from_slice(b"\x12\x05\x0a\x03api"); // metadata
    status.extend_from_slice(b"\x20\x01\x42\x03\x0a\x01x"); // created_at, image
    status.extend_from_slice(b"\x62\x06\x0a\x01k\x12\x01v"); // a label
    let mut answer = vec![0x0a, u8::try_from(status.len() & 0x7f).unwrap() | 0x80];
    answer.push(u8::try_from(status.len() >> 7).unwrap());
    answer.extend_from_slice(&status);
    framed(&answer)
}

pub fn named() -> String {
    format!("registry.example:5000/shop/api@sha256:{}", Digest(IMAGE))
}

fn id() -> Digest {
    Digest([0xab; 32])
}

#[tokio::test]
async fn a_runtime_that_says_it_is_believed() {
    let runtime = Runtime::that(|id| Does::Say(says(id, 1, &named()), "0"));
    assert_eq!(image_of(&runtime.socket, &id()).await, Ok(Digest(IMAGE)));
    assert_eq!(runtime.asked(), 1);
}

#[tokio::test]
async fn whatever_else_it_does_is_no_answer() {
    use ImageUnknown::{NotKnown, Odd, Refused, Unnamed, Unreachable};
    let said = |octets: Vec<u8>| Does::Say(octets, "0");
    let own = id().to_string();
    let whole = says(&own, 1, &named());
    for (does, want) in [
        (Does::Refuse("5"), NotKnown),
        (Does::Say(Vec::new(), "5"), NotKnown),
        (Does::Refuse("14"), Refused(14)),
        (Does::Refuse("many"), Odd("its status is none")),
        (Does::Say(whole.clone(), "2"), Refused(2)),
        (said(Vec::new()), Odd("it is no message")),
        (said(whole[..whole.len() - 1].to_vec()), Odd("it is not one message")),
        (said([&[1], &whole[1..]].concat()), Odd("it is no plain message")),
        (said(framed(b"")), Odd("it has no status of a container")),
        (said(framed(b"\xff\xff\xff")), Odd("it is no `ContainerStatus`")),
        (said(says(&Digest([0; 32]).to_string(), 1, &named())), Odd("it is of another container")),
        (said(says(&own, 2, &named())), Odd("the container does not run")),
        (said(says(&own, 1, "registry.example/api:1.2")), Unnamed),
        (Does::Close, Odd("it broke off")),
        (Does::Flood, Odd("it is too long")),
    ] {
        let does_it = does.clone();
        let runtime = Runtime::that(move |_| does_it.clone());
        assert_eq!(image_of(&runtime.socket, &id()).await, Err(want.clone()), "{want:?}");
    }
    let garbage = Runtime::that(|_| Does::Garbage);
    assert!(matches!(image_of(&garbage.socket, &id()).await, Err(Odd(_))));
    let nobody = image_of(Path::new("/nonexistent/containerd.sock"), &id()).await;
    assert_eq!(nobody, Err(Unreachable(io::ErrorKind::NotFound)));
}

#[tokio::test]
async fn one_that_waits_is_not_waited_for() {
    let runtime = Runtime::that(|_| Does::Wait);
    assert_eq!(image_of(&runtime.socket, &id()).await, Err(ImageUnknown::Late));
}

#[test]
fn only_a_digest_behind_a_name_counts() {
    let hex = Digest(IMAGE).to_string();
    for name in ["a", "docker.io/library/nginx", "[::1]:5000/a/b", "r.example/a:1.2"] {
        assert_eq!(digest_in(&format!("{name}@sha256:{hex}")), Some(Digest(IMAGE)), "{name}");
    }
    let long = "n".repeat(NAME_MAX + 1);
    for bad in [
        "",
        "nginx",
        "nginx:1.2",
        &format!("sha256:{hex}"),
        &format!("@sha256:{hex}"),
        &format!("a@sha512:{hex}"),
        &format!("a@sha256:{}", &hex[1..]),
        &format!("a@sha256:{hex}0"),
        &format!("a@sha256:{hex}@sha256:{hex}"),
        &format!("a b@sha256:{hex}"),
        &format!("{long}@sha256:{hex}"),
    ] {
        assert_eq!(digest_in(bad), None, "{bad}");
    }
}

proptest! {
    #[test]
    fn no_answer_makes_the_reader_panic(octets in proptest::collection::vec(any::<u8>(), 0..96)) {
        let _ = read(&octets, &id());
        let _ = read(&framed(&octets), &id());
    }

    #[test]
    fn no_text_makes_the_name_s_reader_panic(text in ".{0,120}") {
        let _ = digest_in(&text);
    }
}
