//! The images that containers run, as the node's runtime says: asked once for each container, and
//! held for as long as there is room.
//!
//! A container never changes its image, so what was said of an id holds for good. What was not said
//! is unknown, matches no entry, and is asked for again after a pause. Nobody waits here for another
//! container than his own.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use tokio::time::Instant;

use super::attest::Attested;
use super::cri::{ImageUnknown, image_of};
use crate::model::Digest;
use crate::model::limits::{IMAGES_MAX, RUNTIME_ASKED_MAX, RUNTIME_MAX, RUNTIME_PAUSE};

type Asking = Shared<BoxFuture<'static, Result<Digest, ImageUnknown>>>;

enum Told {
    /// Being asked for; from then on by nobody, if it is still here.
    Asking(Asking, Instant),
    Is(Digest),
    /// Not to be asked for again before.
    Unknown(ImageUnknown, Instant),
}

#[derive(Default)]
struct Inner {
    told: HashMap<Digest, (Told, u64)>,
    used: u64,
}

/// What the runtime of this node has said.
pub(super) struct Images {
    socket: PathBuf,
    inner: Mutex<Inner>,
}

impl Images {
    /// Of the runtime behind this socket.
    pub(super) fn new(socket: PathBuf) -> Arc<Self> {
        Arc::new(Self { socket, inner: Mutex::default() })
    }

    /// The process with the image of its container, if there is one and the runtime says it;
    /// otherwise as it was.
    pub(super) async fn seen_in(&self, who: Arc<Attested>) -> Arc<Attested> {
        let facts = who.facts();
        let (Some(container), None) = (facts.container_id, facts.image_digest) else { return who };
        match self.of(container).await {
            Ok(image) => Arc::new(who.with_image(image)),
            Err(_) => who,
        }
    }

    /// The digest of a container's image.
    ///
    /// # Errors
    /// When the runtime does not say it, or did not lately.
    pub(super) async fn of(&self, container: Digest) -> Result<Digest, ImageUnknown> {
        let asking = match self.look(container)? {
            Found::Is(image) => return Ok(image),
            Found::Asking(asking) => asking,
        };
        let answered = asking.await;
        let told = match &answered {
            Ok(image) => Told::Is(*image),
            Err(why) => {
                tracing::warn!(container = %container, error = %why, "the image is unknown");
                Told::Unknown(why.clone(), Instant::now() + RUNTIME_PAUSE)
            }
        };
        self.lock().put(container, told);
        answered
    }

    fn look(&self, container: Digest) -> Result<Found, ImageUnknown> {
        let mut inner = self.lock();
        inner.used = inner.used.saturating_add(1);
        let now = inner.used;
        if let Some((told, used)) = inner.told.get_mut(&container) {
            *used = now;
            match told {
                Told::Is(image) => return Ok(Found::Is(*image)),
                Told::Asking(asking, until) if Instant::now() < *until => {
                    return Ok(Found::Asking(asking.clone()));
                }
                Told::Unknown(why, until) if Instant::now() < *until => return Err(why.clone()),
                Told::Asking(..) | Told::Unknown(..) => {}
            }
        }
        let moment = Instant::now();
        let is_asked =
            |(told, _): &&(Told, u64)| matches!(told, Told::Asking(_, until) if moment < *until);
        if inner.told.values().filter(is_asked).count() >= RUNTIME_ASKED_MAX {
            return Err(ImageUnknown::Busy);
        }
        let socket = self.socket.clone();
        let asking = async move { image_of(&socket, &container).await }.boxed().shared();
        inner.put(container, Told::Asking(asking.clone(), moment + 2 * RUNTIME_MAX));
        Ok(Found::Asking(asking))
    }

    /// As if every pause were over.
    #[cfg(test)]
    pub(super) fn rest_no_more(&self) {
        let unknown = |told: &Told| matches!(told, Told::Unknown(..));
        self.lock().told.retain(|_, (told, _)| !unknown(told));
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|broken| broken.into_inner())
    }
}

enum Found {
    Is(Digest),
    Asking(Asking),
}

impl Inner {
    fn put(&mut self, container: Digest, told: Told) {
        if self.told.len() >= IMAGES_MAX && !self.told.contains_key(&container) {
            let oldest = self.told.iter().min_by_key(|(_, (_, used))| *used).map(|(id, _)| *id);
            if let Some(oldest) = oldest {
                self.told.remove(&oldest);
            }
        }
        self.told.insert(container, (told, self.used));
    }
}

impl std::fmt::Debug for Images {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Images({})", self.socket.display())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::future::join_all;

    use super::super::cri::tests::{Does, IMAGE, Runtime, named, says};
    use super::*;

    fn container(n: u8) -> Digest {
        Digest([n; 32])
    }

    #[tokio::test]
    async fn a_container_is_asked_for_once_and_its_image_stays() {
        let runtime = Runtime::that(|id| Does::Say(says(id, 1, &named()), "0"));
        let images = Images::new(runtime.socket.clone());
        let asked = join_all((0..8).map(|_| images.of(container(1)))).await;
        assert!(asked.iter().all(|told| *told == Ok(Digest(IMAGE))), "{asked:?}");
        assert_eq!(runtime.asked(), 1, "they waited for one answer");
        drop(runtime);
        assert_eq!(images.of(container(1)).await, Ok(Digest(IMAGE)), "without the runtime too");
        let gone = images.of(container(2)).await;
        assert!(matches!(gone, Err(ImageUnknown::Unreachable(_))), "{gone:?}");
    }

    #[tokio::test]
    async fn what_is_unknown_is_asked_for_again_after_a_pause_only() {
        let runtime = Runtime::that(|_| Does::Refuse("5"));
        let images = Images::new(runtime.socket.clone());
        for _ in 0..5 {
            assert_eq!(images.of(container(1)).await, Err(ImageUnknown::NotKnown));
        }
        assert_eq!(runtime.asked(), 1);
        let over = Instant::now();
        images.lock().put(container(1), Told::Unknown(ImageUnknown::NotKnown, over));
        assert_eq!(images.of(container(1)).await, Err(ImageUnknown::NotKnown));
        assert_eq!(runtime.asked(), 2);
    }

    #[tokio::test]
    async fn one_that_is_waited_for_holds_up_nobody_else() {
        let stuck = container(1).to_string();
        let runtime = Runtime::that(move |id| match id == stuck {
            true => Does::Wait,
            false => Does::Say(says(id, 1, &named()), "0"),
        });
        let images = Images::new(runtime.socket.clone());
        let slow = images.of(container(1));
        let quick = async {
            let told = images.of(container(2)).await;
            (told, Instant::now())
        };
        let ((told, at), late) = tokio::join!(quick, async {
            let late = slow.await;
            (late, Instant::now())
        });
        assert_eq!((told, late.0), (Ok(Digest(IMAGE)), Err(ImageUnknown::Late)));
        assert!(at < late.1, "the quick one came first");
    }

    #[tokio::test]
    async fn whoever_stops_waiting_leaves_the_question_to_the_next() {
        let runtime = Runtime::that(|id| Does::Say(says(id, 1, &named()), "0"));
        let images = Images::new(runtime.socket.clone());
        assert!(images.of(container(1)).now_or_never().is_none());
        let within = tokio::time::timeout(Duration::from_secs(20), images.of(container(1)));
        assert_eq!(within.await.unwrap(), Ok(Digest(IMAGE)));
        assert_eq!(runtime.asked(), 1);
    }

    #[tokio::test]
    async fn a_question_that_nobody_waits_for_takes_nobody_s_place_for_long() {
        let runtime = Runtime::that(|id| Does::Say(says(id, 1, &named()), "0"));
        let images = Images::new(runtime.socket.clone());
        for n in 0..u8::try_from(RUNTIME_ASKED_MAX).unwrap() {
            assert!(images.of(container(n)).now_or_never().is_none());
        }
        let (all, one) = (container(0xff), container(0));
        assert_eq!(images.of(all).await, Err(ImageUnknown::Busy));
        let over = Instant::now();
        for (told, _) in images.lock().told.values_mut() {
            let Told::Asking(_, until) = told else { panic!("it is asked for") };
            *until = over;
        }
        assert_eq!(images.of(all).await, Ok(Digest(IMAGE)));
        assert_eq!(images.of(one).await, Ok(Digest(IMAGE)), "asked for anew");
    }

    #[tokio::test]
    async fn questions_and_answers_are_bounded() {
        let runtime = Runtime::that(|_| Does::Wait);
        let images = Images::new(runtime.socket.clone());
        let all = (0..=u8::try_from(RUNTIME_ASKED_MAX).unwrap()).map(|n| images.of(container(n)));
        let told = join_all(all).await;
        assert_eq!(told.last(), Some(&Err(ImageUnknown::Busy)));
        assert!(told[..RUNTIME_ASKED_MAX].iter().all(|it| *it == Err(ImageUnknown::Late)));
        let mut inner = images.lock();
        for n in 0..2 * IMAGES_MAX {
            inner.used += 1;
            inner.put(Digest::of(&n.to_be_bytes()), Told::Is(Digest(IMAGE)));
        }
        assert_eq!(inner.told.len(), IMAGES_MAX);
        assert!(inner.told.contains_key(&Digest::of(&(2 * IMAGES_MAX - 1).to_be_bytes())));
    }
}
