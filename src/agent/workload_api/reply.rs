//! An answer as gRPC wants it: messages, and a status behind the last one.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::Stream;
use http_body::{Body, Frame};
use tonic::Status;
use tonic::codegen::{Bytes, http};

/// Messages in their frames, until the one that tells why no more will come.
pub(super) type Messages = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

/// The body of an answer. Empty where the status stands in the head.
#[derive(Default)]
pub(super) struct Reply(Option<Messages>);

impl Reply {
    /// An answer with messages.
    pub(super) fn of(messages: Messages) -> http::Response<Self> {
        let mut response = http::Response::new(Self(Some(messages)));
        let kind = http::HeaderValue::from_static("application/grpc");
        response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
        response
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(messages) = self.0.as_mut() else { return Poll::Ready(None) };
        let status = match messages.as_mut().poll_next(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Some(Ok(message))) => {
                return Poll::Ready(Some(Ok(Frame::data(message))));
            }
            Poll::Ready(Some(Err(status))) => status,
            Poll::Ready(None) => Status::unavailable("the stream has ended"),
        };
        self.0 = None;
        let mut trailers = http::HeaderMap::new();
        if status.add_header(&mut trailers).is_err() {
            let unknown = http::HeaderValue::from_static("2");
            trailers.insert("grpc-status", unknown);
        }
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }
}
