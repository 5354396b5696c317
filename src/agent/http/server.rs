//! Serving: parse, attest, choose the identity, ask, answer. In that order, on every request.

use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::task::Poll;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use serde_json::json;
use tokio::sync::watch;

use super::super::attest::Attested;
use super::super::exe::ExeDigests;
use super::super::images::Images;
use super::super::local::{Bounds, LocalListener, SocketError, Visitor};
use super::accept::{Accepting, Caller};
use super::batch::{self, Item};
use super::call::{Call, parse, tag};
use super::problem::{Problem, REQUEST_ID};
use super::upstream::Upstream;
use crate::model::limits::{DRAIN, LOCAL_CONNECTIONS, LOCAL_CONNECTIONS_PER_UID};
use crate::model::{
    Answer, Ask, Code, Entry, Released, RequestId, SecretName, SecretValue, SpiffeId,
};

/// Requests of one batch in flight at once: the streams that a broker grants at first.
const BATCH_WIDTH: usize = 16;

/// The local socket with everything behind it.
pub(in crate::agent) struct LocalServer {
    listener: LocalListener,
}

struct Local {
    upstream: Upstream,
    digests: Arc<ExeDigests>,
}

impl LocalServer {
    /// Takes the socket. To be called in a runtime.
    ///
    /// # Errors
    /// When its place is not safe, or not free.
    pub(in crate::agent) fn bind(path: &Path, mode: u32) -> Result<Self, SocketError> {
        let bounds = Bounds { all: LOCAL_CONNECTIONS, per_uid: LOCAL_CONNECTIONS_PER_UID };
        LocalListener::bind(path, mode, bounds).map(|listener| Self { listener })
    }

    /// With the images that the node's runtime tells.
    pub(in crate::agent) fn told_by(self, images: Option<Arc<Images>>) -> Self {
        Self { listener: self.listener.told_by(images) }
    }

    /// Serves until shutdown; running requests then have [`DRAIN`].
    pub(in crate::agent) async fn serve(
        self,
        upstream: Upstream,
        digests: Arc<ExeDigests>,
        shutdown: watch::Receiver<bool>,
    ) -> io::Result<()> {
        let local = Arc::new(Local { upstream, digests });
        let app = Router::new().fallback(respond).with_state(local);
        let app = app.into_make_service_with_connect_info::<Caller>();
        let stopped = |mut shutdown: watch::Receiver<bool>| async move {
            let _ = shutdown.wait_for(|stop| *stop).await; // a sender that is gone means stop too
        };
        let late = stopped(shutdown.clone());
        let serving =
            axum::serve(Accepting(self.listener), app).with_graceful_shutdown(stopped(shutdown));
        tokio::select! {
            ended = serving.into_future() => ended,
            () = async { late.await; tokio::time::sleep(DRAIN).await } => Ok(()),
        }
    }
}

async fn respond(
    State(local): State<Arc<Local>>,
    ConnectInfo(Caller(visitor)): ConnectInfo<Caller>,
    request: Request,
) -> Response {
    local.answer(&visitor, request).await.unwrap_or_else(|problem| problem.response())
}

impl Local {
    async fn answer(&self, visitor: &Visitor, request: Request) -> Result<Response, Problem> {
        let (parts, body) = request.into_parts();
        let call = parse(&parts)?;
        if call == Call::Health {
            return Ok(self.health());
        }
        let who = visitor.attested(&self.digests).await?;
        match call {
            Call::Health => Ok(self.health()),
            Call::Identity { wanted } => self.identity(&who, wanted).await,
            Call::Secret { name, version, have, wanted } => {
                let entry = self.upstream.identify(&who, wanted.as_ref()).await?;
                let ask = Ask::Read { name, version, have };
                let (request, released) = self.upstream.ask(&who, &entry, ask).await?;
                secret(request, released)
            }
            Call::Batch { wanted } => self.batch(&who, wanted, body).await,
        }
    }

    fn health(&self) -> Response {
        let ready = self.upstream.is_ready();
        let mut response = json_response(&json!({ "ready": ready }));
        if !ready {
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        }
        response
    }

    async fn identity(
        &self,
        who: &Arc<Attested>,
        wanted: Option<SpiffeId>,
    ) -> Result<Response, Problem> {
        let entry = self.upstream.identify(who, wanted.as_ref()).await?;
        let (request, released) = self.upstream.ask(who, &entry, Ask::Whoami {}).await?;
        let Answer::Identity { spiffe_id, device, class, until, posture } = released.answer else {
            return Err(odd());
        };
        let facts = who.facts();
        let mut response = json_response(&json!({
            "spiffe_id": spiffe_id, "device": device, "class": class, "until": until,
            "posture": posture, "entry": entry.id, "pid": facts.pid, "pinned": facts.pinned,
        }));
        name_request(&mut response, request);
        Ok(response)
    }

    async fn batch(
        &self,
        who: &Arc<Attested>,
        wanted: Option<SpiffeId>,
        body: Body,
    ) -> Result<Response, Problem> {
        let body = to_bytes(body, batch::BODY_MAX).await.map_err(|_| {
            Problem::own(Code::TooLarge, "body", "the body is too long or did not arrive")
        })?;
        let names = batch::names(&body)?;
        let entry = self.upstream.identify(who, wanted.as_ref()).await?;
        let mut items = Vec::with_capacity(names.len());
        for some in names.chunks(BATCH_WIDTH) {
            let reading = some.iter().map(|name| self.item(who, &entry, name)).collect();
            items.append(&mut all(reading).await);
        }
        let mut response = Response::new(Body::from(wiped(batch::encode(&items))));
        let json = HeaderValue::from_static("application/json");
        response.headers_mut().insert(header::CONTENT_TYPE, json);
        no_store(&mut response);
        Ok(response)
    }

    async fn item(&self, who: &Arc<Attested>, entry: &Entry, name: &SecretName) -> Item {
        let ask = Ask::Read { name: name.clone(), version: None, have: None };
        let outcome = match self.upstream.ask(who, entry, ask).await {
            Ok((request, Released { answer: Answer::Secret { version, .. }, body })) => {
                Ok((request, version, body))
            }
            Ok(_) => Err(odd()),
            Err(why) => Err(why.into()),
        };
        Item { name: name.clone(), outcome }
    }
}

fn secret(request: RequestId, released: Released) -> Result<Response, Problem> {
    let (mut response, version) = match released.answer {
        Answer::Secret { version, .. } => {
            let mut response = Response::new(Body::from(wiped(Owned(released.body))));
            let raw = HeaderValue::from_static("application/octet-stream");
            response.headers_mut().insert(header::CONTENT_TYPE, raw);
            let plain = HeaderValue::from_static("nosniff");
            response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, plain);
            (response, version)
        }
        Answer::NotModified { version } => {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            (response, version)
        }
        _ => return Err(odd()),
    };
    if let Ok(tag) = tag(version).parse() {
        response.headers_mut().insert(header::ETAG, tag);
    }
    name_request(&mut response, request);
    no_store(&mut response);
    Ok(response)
}

fn odd() -> Problem {
    Problem::own(Code::Internal, "answer", "the broker answered with something else")
}

fn json_response(value: &serde_json::Value) -> Response {
    let mut response = Response::new(Body::from(value.to_string()));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    no_store(&mut response);
    response
}

fn no_store(response: &mut Response) {
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
}

fn name_request(response: &mut Response, request: RequestId) {
    if let Ok(id) = request.to_string().parse() {
        response.headers_mut().insert(REQUEST_ID, id);
    }
}

/// A secret as the owner of response bytes: wiped when the last of them is sent.
struct Owned(SecretValue);

impl AsRef<[u8]> for Owned {
    fn as_ref(&self) -> &[u8] {
        self.0.expose()
    }
}

fn wiped(owner: impl AsRef<[u8]> + Send + 'static) -> Bytes {
    Bytes::from_owner(owner)
}

/// Runs some futures side by side, and gives their results in order.
async fn all<T>(futures: Vec<impl Future<Output = T>>) -> Vec<T> {
    let mut running: Vec<_> = futures.into_iter().map(|one| (Box::pin(one), None)).collect();
    std::future::poll_fn(move |cx| {
        let mut waiting = false;
        for (future, result) in &mut running {
            if result.is_none() {
                match future.as_mut().poll(cx) {
                    Poll::Ready(value) => *result = Some(value),
                    Poll::Pending => waiting = true,
                }
            }
        }
        if waiting {
            return Poll::Pending;
        }
        Poll::Ready(running.drain(..).filter_map(|(_, result)| result).collect())
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::process::{Command, Stdio};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;
    use uuid::Uuid;

    use super::super::super::duties::Duties;
    use super::super::super::issued::WorkloadError;
    use super::super::super::run::{RunError, fetch};
    use super::super::upstream::Canned;
    use super::*;
    use crate::model::{
        Clock, DeviceClass, EntryDraft, EntryId, Reason, Refusal, Selector, SystemClock,
    };

    fn entry(n: u128, path: &str, uid: u32) -> Entry {
        let draft = EntryDraft {
            spiffe_id: SpiffeId::parse(&format!("spiffe://corp.example{path}")).unwrap(),
            class: DeviceClass::parse("server").unwrap(),
            device: None,
            selectors: vec![Selector::Uid(uid)],
            ttl_s: None,
            default: false,
            jwt_alg: Default::default(),
            federates_with: Vec::new(),
            hint: None,
        };
        let created = "2026-11-23T00:00:00Z".into();
        Entry { id: EntryId(Uuid::from_u128(n)), draft, epoch: 0, created }
    }

    /// `pay/…` is version 7 of its own name, of the one who asks; all else is denied.
    fn broker(entry: &Entry, ask: Ask) -> Result<(RequestId, Released), WorkloadError> {
        let request = RequestId::new(SystemClock.now());
        let refuse = |code, reason| {
            Err(WorkloadError::Refused(Refusal { request, code, reason, hint: None }))
        };
        match ask {
            Ask::Read { have: Some(7), .. } => {
                Ok((request, Released::head(Answer::NotModified { version: 7 })))
            }
            Ask::Read { name, .. } if name.namespace().as_str() == "pay" => {
                let labels = crate::model::Labels::default();
                let body = SecretValue::new(format!("{name} {}", entry.draft.spiffe_id).into());
                Ok((request, Released { answer: Answer::Secret { version: 7, labels }, body }))
            }
            Ask::Read { name, .. } if name.as_str() == "busy/x" => {
                refuse(Code::Limited, Reason::Limited)
            }
            _ => refuse(Code::Denied, Reason::NoAllow),
        }
    }

    struct Served {
        _dir: tempfile::TempDir,
        socket: PathBuf,
    }

    /// Runs `test` against a real socket that is served beside it.
    async fn served<F: Future>(entries: Vec<Entry>, test: impl FnOnce(PathBuf) -> F) -> F::Output {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("agent.sock");
        let at = Served { _dir: dir, socket: socket.clone() };
        let server = LocalServer::bind(&at.socket, 0o666).unwrap();
        let entries = entries.into_iter().map(Arc::new).collect();
        let duties = Duties { entries, revision: 1, ..Duties::default() };
        let upstream = Upstream::Canned(Canned { duties, answer: Box::new(broker) });
        let (stop, stopped) = watch::channel(false);
        let serving = server.serve(upstream, Arc::default(), stopped);
        let testing = async {
            let output = test(socket).await;
            stop.send_replace(true);
            output
        };
        let (ended, output) = tokio::join!(serving, testing);
        ended.unwrap();
        assert!(!at.socket.exists(), "the socket goes with the server");
        output
    }

    async fn send(stream: &mut UnixStream, request: &str) -> (u16, String, String) {
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            let text = String::from_utf8(answer.clone()).unwrap();
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let length = head
                    .lines()
                    .find_map(|line| line.strip_prefix("content-length: "))
                    .map_or(0, |length| length.parse().unwrap());
                if body.len() >= length {
                    let status = head.get(9..12).unwrap().parse().unwrap();
                    return (status, head.to_owned(), body.to_owned());
                }
            }
            let read = stream.read(&mut chunk).await.unwrap();
            assert!(read > 0, "the connection was closed: {text}");
            answer.extend_from_slice(&chunk[..read]);
        }
    }

    fn get(target: &str, more: &str) -> String {
        format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n")
    }

    const REQUIRED: &str = "Doorward-Request: true\r\n";

    fn me() -> u32 {
        nix::unistd::getuid().as_raw()
    }

    #[tokio::test]
    async fn a_secret_comes_raw_with_its_tag_and_is_not_sent_twice() {
        served(vec![entry(1, "/api", me())], |socket| async move {
            let mut stream = UnixStream::connect(socket).await.unwrap();
            let ask = get("/v1/secrets/pay/db/url", REQUIRED);
            let (status, head, body) = send(&mut stream, &ask).await;
            assert_eq!((status, body.as_str()), (200, "pay/db/url spiffe://corp.example/api"));
            for line in [
                "etag: \"v7\"",
                "content-type: application/octet-stream",
                "cache-control: no-store",
                "doorward-request-id: ",
            ] {
                assert!(head.contains(line), "{line} in {head}");
            }
            let have = format!("{REQUIRED}If-None-Match: \"v7\"\r\n");
            let (status, head, body) =
                send(&mut stream, &get("/v1/secrets/pay/db/url", &have)).await;
            assert_eq!((status, body.as_str()), (304, ""));
            assert!(head.contains("doorward-request-id: "), "a 304 is a decision too");
        })
        .await;
    }

    #[tokio::test]
    async fn refusals_are_problems_with_their_status() {
        served(vec![entry(1, "/api", me())], |socket| async move {
            let mut stream = UnixStream::connect(socket).await.unwrap();
            for (target, more, want, reason) in [
                ("/v1/secrets/pay/db", "", 400, "header"),
                ("/v1/secrets/pay/%64b", REQUIRED, 400, "percent"),
                ("/v1/secrets/pay/db?x=1", REQUIRED, 400, "query"),
                ("/v1/secrets/other/db", REQUIRED, 403, "D101"),
                ("/v1/secrets/busy/x", REQUIRED, 429, "D701"),
                ("/v1/secrets/pay/db?as=spiffe://corp.example/root", REQUIRED, 403, "no_identity"),
                ("/v1/nothing", REQUIRED, 404, "no_such_path"),
            ] {
                let (status, head, body) = send(&mut stream, &get(target, more)).await;
                let problem: serde_json::Value = serde_json::from_str(&body).unwrap();
                assert_eq!((status, problem["reason"].as_str().unwrap()), (want, reason));
                assert_eq!(problem["status"], want);
                assert!(head.contains("content-type: application/problem+json"), "{head}");
                assert_eq!(status == 429, head.contains("retry-after: 1"));
                assert_eq!(reason.starts_with('D'), problem.get("request_id").is_some());
            }
            let (status, _, body) = send(&mut stream, &get("/v1/health", "")).await;
            assert_eq!((status, body.as_str()), (200, "{\"ready\":true}"));
        })
        .await;
    }

    #[tokio::test]
    async fn several_identities_are_named_and_one_is_chosen() {
        let entries = vec![entry(1, "/a", me()), entry(2, "/b", me()), entry(3, "/c", me() + 1)];
        served(entries, |socket| async move {
            let mut stream = UnixStream::connect(socket).await.unwrap();
            let ask = get("/v1/secrets/pay/db", REQUIRED);
            let (status, _, body) = send(&mut stream, &ask).await;
            let problem: serde_json::Value = serde_json::from_str(&body).unwrap();
            assert_eq!(status, 409);
            let choices = ["spiffe://corp.example/a", "spiffe://corp.example/b"];
            assert_eq!(problem["choices"], json!(choices));
            let ask = get("/v1/secrets/pay/db?as=spiffe://corp.example/b", REQUIRED);
            let (status, _, body) = send(&mut stream, &ask).await;
            assert_eq!((status, body.as_str()), (200, "pay/db spiffe://corp.example/b"));
            let ask = get("/v1/secrets/pay/db?as=spiffe://corp.example/c", REQUIRED);
            assert_eq!(send(&mut stream, &ask).await.0, 403, "another uid's");
        })
        .await;
    }

    #[tokio::test]
    async fn a_batch_is_fetched_by_our_own_client_all_or_none() {
        served(vec![entry(1, "/api", me())], |socket| async move {
            let name = |text: String| SecretName::parse(&text).unwrap();
            let names: Vec<_> = (0..130).map(|n| name(format!("pay/n{n}"))).collect();
            let values = fetch(&socket, &names, None).await.unwrap();
            assert_eq!(values.len(), 130, "in two requests");
            for ((got, value), want) in values.iter().zip(&names) {
                assert_eq!(got, want);
                let text = format!("{want} spiffe://corp.example/api");
                assert_eq!(value.expose(), text.as_bytes());
            }
            let one_denied = [name("pay/a".into()), name("other/b".into())];
            match fetch(&socket, &one_denied, None).await {
                Err(RunError::Refused { name, reason, request_id, .. }) => {
                    assert_eq!(name.as_deref(), Some("other/b"));
                    assert_eq!(reason, "D101");
                    assert!(request_id.is_some());
                }
                other => panic!("{other:?}"),
            }
            let as_stranger = fetch(&socket, &names[..1], Some("spiffe://corp.example/x")).await;
            match as_stranger {
                Err(RunError::Refused { name: None, reason, .. }) => {
                    assert_eq!(reason, "no_identity");
                }
                other => panic!("{other:?}"),
            }
        })
        .await;
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_refused() {
        served(vec![entry(1, "/api", me())], |socket| async move {
            let mut stream = UnixStream::connect(socket).await.unwrap();
            let body = format!("{{\"names\":[\"pay/{}\"]}}", "a".repeat(batch::BODY_MAX));
            let request = format!(
                "POST /v1/secrets:batch HTTP/1.1\r\nHost: x\r\n{REQUIRED}content-length: {}\r\n\r\n\
                 {body}",
                body.len()
            );
            assert_eq!(send(&mut stream, &request).await.0, 413);
        })
        .await;
    }

    /// The socket of a connection that is handed to another process: what that one writes on it is
    /// not taken for the words of the one who connected.
    #[tokio::test]
    async fn a_connection_in_other_hands_asks_for_nobody() {
        served(vec![entry(1, "/api", me())], |socket| async move {
            let mut stream = UnixStream::connect(&socket).await.unwrap();
            let ask = get("/v1/secrets/pay/db", REQUIRED);
            assert_eq!(send(&mut stream, &ask).await.0, 200, "the positive control");

            let handed = stream.into_std().unwrap();
            handed.set_nonblocking(false).unwrap();
            let kept = handed.try_clone().unwrap();
            let text = ask.replace("\r\n", "\\r\\n");
            let mut other = Command::new("sh")
                .args(["-c", &format!("printf '{text}' >&0")])
                .stdin(Stdio::from(std::os::fd::OwnedFd::from(handed)))
                .spawn()
                .unwrap();
            other.wait().unwrap();
            kept.set_nonblocking(true).unwrap();
            let mut kept = UnixStream::from_std(kept).unwrap();
            let mut answer = Vec::new();
            let _ = kept.read_to_end(&mut answer).await;
            assert_eq!(String::from_utf8_lossy(&answer), "", "closed without a word");
        })
        .await;
    }
}
