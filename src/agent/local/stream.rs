//! One local connection: bytes, and the proof that they come from the process that connected.
//!
//! The kernel writes the sender of each message beside it (`SO_PASSCRED`); a message of another
//! process than the one that connected ends the connection. So a socket that was handed on, or is
//! shared with a child, asks for nobody. Descriptors that somebody sends along are never taken.
//! Bytes that arrive without an answer in between are bounded, and so is silence.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixCredentials, recvmsg};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::time::{Instant, Sleep};

use super::super::attest::{AttestError, Attested, PeerProcess};
use super::super::exe::ExeDigests;
use super::super::images::Images;
use super::listener::Place;

/// A batch of 128 names of 512 bytes with its headers, twice over.
const READ_MAX: usize = 192 * 1024;
/// A connection that neither sends nor takes anything is closed after this.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// Attestation of one request; a file system that hangs must not hold it for ever.
const ATTEST_MAX: Duration = Duration::from_secs(10);

/// The bytes of one connection.
pub(in crate::agent) struct LocalStream {
    stream: UnixStream,
    sender: (u32, u32),
    unanswered: usize,
    idle: Pin<Box<Sleep>>,
    _place: Arc<Place>,
}

impl LocalStream {
    pub(super) fn new(stream: UnixStream, pid: u32, uid: u32, place: Arc<Place>) -> Self {
        let idle = Box::pin(tokio::time::sleep(IDLE_MAX));
        Self { stream, sender: (pid, uid), unanswered: 0, idle, _place: place }
    }

    fn stir(&mut self) {
        self.idle.as_mut().reset(Instant::now() + IDLE_MAX);
    }

    fn wrote(&mut self, result: &Poll<io::Result<usize>>) {
        if matches!(result, Poll::Ready(Ok(_))) {
            self.unanswered = 0;
            self.stir();
        }
    }
}

/// Reads once; refuses bytes of any other process than `sender` (pid, uid).
fn receive(stream: &UnixStream, into: &mut [u8], sender: (u32, u32)) -> io::Result<usize> {
    // Room for the credentials and nothing else: descriptors sent along don't fit, and the kernel
    // closes them and marks the message as cut.
    let mut beside = nix::cmsg_space!(UnixCredentials);
    let mut parts = [IoSliceMut::new(into)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut beside), flags)?;
    if message.bytes == 0 {
        return Ok(0);
    }
    let told = message.cmsgs()?.find_map(|beside| match beside {
        ControlMessageOwned::ScmCredentials(who) => {
            u32::try_from(who.pid()).ok().map(|pid| (pid, who.uid()))
        }
        _ => None,
    });
    if told != Some(sender) {
        tracing::warn!(connected = sender.0, "another process wrote on a local connection");
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok(message.bytes)
}

impl AsyncRead for LocalStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if this.stream.poll_read_ready(cx)?.is_pending() {
                ready!(this.idle.as_mut().poll(cx));
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            let into = buf.initialize_unfilled();
            let sender = this.sender;
            let stream = &this.stream;
            match stream.try_io(Interest::READABLE, || receive(stream, into, sender)) {
                Ok(read) => {
                    buf.advance(read);
                    this.unanswered = this.unanswered.saturating_add(read);
                    this.stir();
                    let over = this.unanswered > READ_MAX;
                    let fault = || Err(io::ErrorKind::FileTooLarge.into());
                    return Poll::Ready(if over { fault() } else { Ok(()) });
                }
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => {}
                Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
                Err(why) => return Poll::Ready(Err(why)),
            }
        }
    }
}

impl AsyncWrite for LocalStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.wrote(&result);
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.wrote(&result);
        result
    }

    /// Yes: so values go out from where they are, and no second copy of them is made.
    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

enum State {
    /// Pinned at accept, not looked at yet.
    Pinned(PeerProcess),
    /// Looked at, and to be looked at again on each request.
    Known(Arc<Attested>),
    /// It was somebody else once, or could not be told: for good.
    Refused,
}

/// Who is at the other end of one connection.
#[derive(Clone)]
pub(in crate::agent) struct Visitor {
    uid: u32,
    state: Arc<Mutex<State>>,
    /// When it was last seen to be the same, for those that only keep an eye on it.
    seen: Arc<std::sync::Mutex<Option<Instant>>>,
    /// Whom the image of its container is asked of, where it has one.
    images: Option<Arc<Images>>,
    /// The connection's share, which is not free again while a look goes on.
    place: Arc<Place>,
}

impl Visitor {
    pub(super) fn new(process: PeerProcess, place: Arc<Place>) -> Self {
        let uid = process.uid();
        let state = Arc::new(Mutex::new(State::Pinned(process)));
        Self { uid, state, seen: Arc::default(), images: None, place }
    }

    /// With the images that the node's runtime tells.
    pub(super) fn told_by(self, images: Option<Arc<Images>>) -> Self {
        Self { images, ..self }
    }

    /// Its user when it connected.
    pub(in crate::agent) fn uid(&self) -> u32 {
        self.uid
    }

    /// Whether whoever was attested has ended or is another by now. Blocks for some microseconds.
    pub(in crate::agent) fn is_over(&self) -> bool {
        let Ok(state) = self.state.try_lock() else { return false }; // it is being looked at
        match &*state {
            State::Pinned(_) => false,
            State::Known(who) => {
                matches!(who.still_same(), Err(AttestError::Gone | AttestError::Changed))
            }
            State::Refused => true,
        }
    }

    /// Whether somebody has looked through this connection within this time, and found the same
    /// process. No ground to give anything on.
    pub(in crate::agent) fn seen_within(&self, time: Duration) -> bool {
        let seen = *self.seen.lock().unwrap_or_else(|broken| broken.into_inner());
        seen.is_some_and(|seen| seen.elapsed() < time)
    }

    /// Attests the process: in full the first time, and on each later request that it is still the
    /// same. What failed once fails for good on this connection. Whoever stops waiting for the
    /// answer changes nothing: the look goes on and its outcome stays.
    pub(in crate::agent) async fn attested(
        &self,
        digests: &Arc<ExeDigests>,
    ) -> Result<Arc<Attested>, AttestError> {
        let (state, place, digests) = (self.state.clone(), self.place.clone(), digests.clone());
        let looking = async {
            let mut state = state.lock_owned().await;
            // Only the first look is long: it may hash a program. Those who wait hold no thread.
            let turn = match &*state {
                State::Pinned(_) => Some(place.turn().await),
                State::Known(_) | State::Refused => None,
            };
            tokio::task::spawn_blocking(move || {
                let who = match std::mem::replace(&mut *state, State::Refused) {
                    State::Pinned(process) => process.attest(&digests).map(Arc::new),
                    State::Known(who) => who.still_same().map(|()| who),
                    State::Refused => Err(AttestError::Changed),
                }?;
                *state = State::Known(who.clone());
                drop((turn, place));
                Ok(who)
            })
            .await
        };
        let began = Instant::now();
        let looked = match tokio::time::timeout(ATTEST_MAX, looking).await {
            Ok(Ok(looked)) => looked,
            Ok(Err(_)) | Err(_) => Err(AttestError::Late),
        };
        *self.seen.lock().unwrap_or_else(|broken| broken.into_inner()) =
            looked.is_ok().then_some(began);
        match &self.images {
            Some(images) => self.with_image(images, looked?).await,
            None => looked,
        }
    }

    /// The process with the image of its container, from when the runtime has said it on. Nothing
    /// of the connection is held while that is waited for, and it must be the same process then.
    async fn with_image(
        &self,
        images: &Images,
        who: Arc<Attested>,
    ) -> Result<Arc<Attested>, AttestError> {
        let seen = images.seen_in(who.clone()).await;
        if Arc::ptr_eq(&seen, &who) {
            return Ok(who);
        }
        let mut state = self.state.lock().await;
        match std::mem::replace(&mut *state, State::Refused) {
            State::Known(held) => {
                held.still_same()?;
                // Another call of the same connection may have been first.
                let known = if held.facts().image_digest.is_some() { held } else { seen };
                *state = State::Known(known.clone());
                Ok(known)
            }
            State::Pinned(_) | State::Refused => Err(AttestError::Changed),
        }
    }
}

impl std::fmt::Debug for Visitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Visitor")
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_look_that_nobody_waits_for_refuses_nobody() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let process = PeerProcess::of(&ours).unwrap();
        let visitor = Visitor::new(process, Arc::new(Place::of_a_test()));
        let digests = Arc::new(ExeDigests::default());
        for _ in 0..8 {
            assert!(visitor.attested(&digests).now_or_never().is_none(), "it was waited for");
        }
        visitor.attested(&digests).await.unwrap();
    }

    #[tokio::test]
    async fn the_image_is_told_once_the_runtime_says_it() {
        use std::sync::atomic::{AtomicBool, Ordering};

        use super::super::super::cri::tests::{Does, IMAGE, Runtime, named, says};
        use crate::model::Digest;
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let says_it = Arc::new(AtomicBool::new(false));
        let switch = says_it.clone();
        let runtime = Runtime::that(move |id| match switch.load(Ordering::SeqCst) {
            true => Does::Say(says(id, 1, &named()), "0"),
            false => Does::Refuse("5"),
        });
        let images = Images::new(runtime.socket.clone());
        let visitor = Visitor::new(PeerProcess::of(&ours).unwrap(), Arc::new(Place::of_a_test()));
        let visitor = visitor.told_by(Some(images.clone()));
        let digests = Arc::new(ExeDigests::default());
        let first = visitor.attested(&digests).await.unwrap();
        assert_eq!((first.facts().image_digest, runtime.asked()), (None, 0), "in no container");
        let inside = Arc::new(first.in_container(Digest([7; 32])));
        *visitor.state.lock().await = State::Known(inside.clone());
        let unknown = visitor.attested(&digests).await.unwrap();
        assert_eq!((unknown.facts().image_digest, runtime.asked()), (None, 1));
        says_it.store(true, Ordering::SeqCst);
        let resting = visitor.attested(&digests).await.unwrap();
        assert_eq!((resting.facts().image_digest, runtime.asked()), (None, 1), "not so soon");
        images.rest_no_more();
        let known = visitor.attested(&digests).await.unwrap();
        assert_eq!(known.facts().image_digest, Some(Digest(IMAGE)));
        assert_eq!(known.instance(), first.instance());
        let again = visitor.attested(&digests).await.unwrap();
        assert!(Arc::ptr_eq(&again, &known) && runtime.asked() == 2, "and stays");
    }

    #[tokio::test]
    async fn who_waits_for_a_look_holds_no_thread_and_is_looked_at_later() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let place = Arc::new(Place::of_a_test());
        let visitor = Visitor::new(PeerProcess::of(&ours).unwrap(), place.clone());
        let digests = Arc::new(ExeDigests::default());
        let others = place.turn().await;
        assert!(visitor.attested(&digests).now_or_never().is_none());
        assert!(matches!(*visitor.state.lock().await, State::Pinned(_)), "nobody has begun");
        drop(others);
        visitor.attested(&digests).await.unwrap();
        let _others = place.turn().await;
        visitor.attested(&digests).await.expect("who is known needs no turn");
    }
}
