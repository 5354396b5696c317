//! Serving: the rate, the header, the method, the request, the process, its entries. In that order.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::stream::{iter, unfold};
use http_body::Body as _;
use prost::Message;
use tokio::sync::watch;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Bytes, Service, http};
use tonic::transport::Server;
use zeroize::Zeroizing;

use super::super::images::Images;
use super::super::local::{Bounds, LocalListener, SocketError, Visitor};
use super::bundles::X509Bundles;
use super::connection::Connection;
use super::jwt::{self, JwtBundles};
use super::messages::{Nothing, PREFIX, only_message};
use super::rates::Rates;
use super::reflection;
use super::reply::{Messages, Reply};
use super::watch::{Ground, Watch, X509Svids};
use crate::model::limits::{
    DRAIN, HEAD_TIMEOUT, WORKLOAD_CONNECTIONS, WORKLOAD_CONNECTIONS_PER_UID, WORKLOAD_HEADERS,
    WORKLOAD_KEEP_ALIVE, WORKLOAD_REQUEST, WORKLOAD_STREAMS, WORKLOAD_WINDOW,
};

/// What every call must carry, so that none is forged through somebody's HTTP client (SPIFFE
/// Workload Endpoint §6.1).
const SECURITY_HEADER: &str = "workload.spiffe.io";
/// The standard's name of the service, which has no package.
const SERVICE: &str = "/SpiffeWorkloadAPI/";

/// The Workload API's socket with everything behind it.
pub(in crate::agent) struct WorkloadServer {
    listener: LocalListener,
}

impl WorkloadServer {
    /// Takes the socket. To be called in a runtime.
    ///
    /// # Errors
    /// When its place is not safe, or not free.
    pub(in crate::agent) fn bind(path: &Path, mode: u32) -> Result<Self, SocketError> {
        let bounds = Bounds { all: WORKLOAD_CONNECTIONS, per_uid: WORKLOAD_CONNECTIONS_PER_UID };
        LocalListener::bind(path, mode, bounds).map(|listener| Self { listener })
    }

    /// With the images that the node's runtime tells.
    pub(in crate::agent) fn told_by(self, images: Option<Arc<Images>>) -> Self {
        Self { listener: self.listener.told_by(images) }
    }

    /// Serves until shutdown; open streams are told and end at once.
    pub(in crate::agent) async fn serve(self, ground: Ground) -> io::Result<()> {
        let stopped = |mut stop: watch::Receiver<bool>| async move {
            let _ = stop.wait_for(|stop| *stop).await; // a sender that is gone means stop too
        };
        let (stop, late) = (stopped(ground.stop.clone()), stopped(ground.stop.clone()));
        let service =
            WorkloadApi(Arc::new(Api { ground: Arc::new(ground), rates: Arc::default() }));
        let incoming = unfold(self.listener, |mut listener| async {
            let (stream, visitor) = listener.admitted().await;
            Some((Ok::<_, Infallible>(Connection::new(stream, visitor)), listener))
        });
        let serving = Server::builder()
            .max_concurrent_streams(WORKLOAD_STREAMS)
            .initial_stream_window_size(WORKLOAD_WINDOW)
            .initial_connection_window_size(WORKLOAD_WINDOW)
            .http2_max_header_list_size(WORKLOAD_HEADERS)
            .http2_keepalive_interval(Some(WORKLOAD_KEEP_ALIVE))
            .http2_keepalive_timeout(Some(WORKLOAD_KEEP_ALIVE))
            .serve_with_incoming_shutdown(service, incoming, stop);
        tokio::select! {
            ended = serving => ended.map_err(io::Error::other),
            () = async { late.await; tokio::time::sleep(DRAIN).await } => Ok(()),
        }
    }
}

struct Api {
    ground: Arc<Ground>,
    rates: Arc<Rates>,
}

/// The service of all connections.
#[derive(Clone)]
struct WorkloadApi(Arc<Api>);

impl Service<http::Request<Body>> for WorkloadApi {
    type Response = http::Response<Reply>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let api = self.0.clone();
        Box::pin(async move { Ok(api.respond(request).await) })
    }
}

/// The methods that are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    FetchX509Svid,
    FetchX509Bundles,
    FetchJwtSvid,
    FetchJwtBundles,
    ValidateJwtSvid,
}

impl Api {
    async fn respond(&self, request: http::Request<Body>) -> http::Response<Reply> {
        if !is_grpc(&request) {
            let mut response = http::Response::new(Reply::default());
            *response.status_mut() = http::StatusCode::UNSUPPORTED_MEDIA_TYPE;
            return response;
        }
        self.answer(request).await.map_or_else(Status::into_http, Reply::of)
    }

    async fn answer(&self, request: http::Request<Body>) -> Result<Messages, Status> {
        let (parts, body) = request.into_parts();
        let visitor = parts.extensions.get::<Visitor>().cloned();
        let visitor = visitor.ok_or_else(|| Status::internal("the connection has no process"))?;
        let mut watch = Watch::new(self.ground.clone(), visitor, self.rates.clone());
        watch.charge(1)?;
        check_header(&parts.headers)?;
        if reflection::PATHS.contains(&parts.uri.path()) {
            return Ok(reflection::answers(body, watch));
        }
        let method = method_of(parts.uri.path())?;
        let body = tokio::time::timeout(HEAD_TIMEOUT, whole(body));
        let body =
            body.await.map_err(|_| Status::invalid_argument("the request did not arrive"))?;
        let body = Zeroizing::new(body?); // a token may be in it
        match method {
            Method::FetchX509Svid => {
                asked::<Nothing>(&body)?;
                opened(X509Svids::new(watch), next_svids).await
            }
            Method::FetchX509Bundles => {
                asked::<Nothing>(&body)?;
                opened(X509Bundles::new(watch), next_bundles).await
            }
            Method::FetchJwtSvid => jwt::fetch(watch, asked(&body)?).await.map(only),
            Method::FetchJwtBundles => {
                asked::<Nothing>(&body)?;
                opened(JwtBundles::new(watch), next_keys).await
            }
            Method::ValidateJwtSvid => jwt::validate(&mut watch, &asked(&body)?).await.map(only),
        }
    }
}

type Next<S> = Pin<Box<dyn Future<Output = (Result<Bytes, Status>, S)> + Send>>;

fn next_svids(mut svids: X509Svids) -> Next<X509Svids> {
    Box::pin(async move { (svids.next().await, svids) })
}

fn next_bundles(mut bundles: X509Bundles) -> Next<X509Bundles> {
    Box::pin(async move { (bundles.next().await, bundles) })
}

fn next_keys(mut keys: JwtBundles) -> Next<JwtBundles> {
    Box::pin(async move { (keys.next().await, keys) })
}

/// The request, which is one message.
fn asked<M: Message + Default>(body: &[u8]) -> Result<M, Status> {
    only_message(body)
        .ok_or_else(|| Status::invalid_argument("the request is not one plain message"))
}

/// The answer of a call that has one, and then the status that all is well.
fn only(message: Bytes) -> Messages {
    Box::pin(iter([Ok(message), Err(Status::ok(""))]))
}

/// A stream whose first message is there. A refusal at once is the answer's head; a later one ends
/// the stream.
async fn opened<S: Send + 'static>(source: S, next: fn(S) -> Next<S>) -> Result<Messages, Status> {
    let (first, source) = next(source).await;
    let state = (Some(first?), Some(source));
    Ok(Box::pin(unfold(state, move |(first, source)| async move {
        if let Some(first) = first {
            return Some((Ok(first), (None, source)));
        }
        let (message, source) = next(source?).await;
        let source = message.is_ok().then_some(source);
        Some((message, (None, source)))
    })))
}

fn is_grpc(request: &http::Request<Body>) -> bool {
    let kind = request.headers().get(http::header::CONTENT_TYPE);
    request.method() == http::Method::POST
        && kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

fn check_header(headers: &http::HeaderMap) -> Result<(), Status> {
    let mut values = headers.get_all(SECURITY_HEADER).iter();
    match (values.next().map(http::HeaderValue::as_bytes), values.next()) {
        (Some(b"true"), None) => Ok(()),
        _ => Err(Status::invalid_argument("security header missing from request")),
    }
}

fn method_of(path: &str) -> Result<Method, Status> {
    match path.strip_prefix(SERVICE) {
        Some("FetchX509SVID") => Ok(Method::FetchX509Svid),
        Some("FetchX509Bundles") => Ok(Method::FetchX509Bundles),
        Some("FetchJWTSVID") => Ok(Method::FetchJwtSvid),
        Some("FetchJWTBundles") => Ok(Method::FetchJwtBundles),
        Some("ValidateJWTSVID") => Ok(Method::ValidateJwtSvid),
        Some("FetchWITSVID" | "FetchWITBundles") => {
            Err(Status::unimplemented("this agent does not serve the WIT-SVID profile"))
        }
        _ => Err(Status::unimplemented("the Workload API has no such method")),
    }
}

/// The whole body of a request.
async fn whole(mut body: Body) -> Result<Vec<u8>, Status> {
    let mut octets = Vec::new();
    let mut body = Pin::new(&mut body);
    while let Some(frame) = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        let frame = frame.map_err(|_| Status::invalid_argument("the request did not arrive"))?;
        let Ok(data) = frame.into_data() else { continue };
        if octets.len().saturating_add(data.len()) > WORKLOAD_REQUEST + PREFIX {
            return Err(Status::invalid_argument("the request is too large"));
        }
        octets.extend_from_slice(&data);
    }
    Ok(octets)
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn the_header_is_demanded_to_the_letter() {
        let with = |values: &[&'static str]| {
            let mut headers = http::HeaderMap::new();
            for value in values {
                headers.append(SECURITY_HEADER, http::HeaderValue::from_static(value));
            }
            check_header(&headers)
        };
        assert!(with(&["true"]).is_ok());
        for bad in [&[][..], &["false"], &["True"], &["true "], &[""], &["true", "true"]] {
            assert_eq!(with(bad).unwrap_err().code(), Code::InvalidArgument, "{bad:?}");
        }
    }

    #[test]
    fn methods_have_the_standards_paths() {
        let method = |path| method_of(path).map_err(|status| status.code());
        assert_eq!(method("/SpiffeWorkloadAPI/FetchX509SVID"), Ok(Method::FetchX509Svid));
        assert_eq!(method("/SpiffeWorkloadAPI/FetchX509Bundles"), Ok(Method::FetchX509Bundles));
        assert_eq!(method("/SpiffeWorkloadAPI/FetchJWTSVID"), Ok(Method::FetchJwtSvid));
        assert_eq!(method("/SpiffeWorkloadAPI/FetchJWTBundles"), Ok(Method::FetchJwtBundles));
        assert_eq!(method("/SpiffeWorkloadAPI/ValidateJWTSVID"), Ok(Method::ValidateJwtSvid));
        for path in [
            "/SpiffeWorkloadAPI/FetchWITSVID",
            "/SpiffeWorkloadAPI/FetchX509svid",
            "/SpiffeWorkloadAPI/",
            "/spiffe.SpiffeWorkloadAPI/FetchX509SVID",
            "/",
        ] {
            assert_eq!(method(path), Err(Code::Unimplemented), "{path}");
        }
    }
}
