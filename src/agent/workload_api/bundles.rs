//! The stream of roots, for processes with an identity only.

use std::sync::Arc;

use tonic::Status;
use tonic::codegen::Bytes;

use super::super::roots::Roots;
use super::messages::{X509BundlesResponse, frame};
use super::watch::{ConcatDer as _, Others, Watch, copied, too_large};

/// The stream of `FetchX509Bundles`: for processes with an identity only.
pub(super) struct X509Bundles {
    watch: Watch,
    given: Option<(Arc<Roots>, Others)>,
}

impl X509Bundles {
    pub(super) fn new(watch: Watch) -> Self {
        Self { watch, given: None }
    }

    /// The next full state, as soon as there is another one than was given last.
    pub(super) async fn next(&mut self) -> Result<Bytes, Status> {
        loop {
            let who = self.watch.glance().await?;
            let entries = self.watch.fitting(&who, self.given.is_none()).await?;
            let others = self.watch.others(&entries);
            let roots = self.watch.roots().borrow_and_update().clone();
            let bundle = roots.published();
            if bundle.is_empty() {
                return Err(Status::unavailable("the agent is starting"));
            }
            let same = |(given, told): &(Arc<Roots>, Others)| {
                given.published() == bundle && *told == others
            };
            if self.given.as_ref().is_some_and(same) {
                self.watch.look().await?;
                continue;
            }
            self.watch.who().await?;
            let mut response = X509BundlesResponse::default();
            let domain = format!("spiffe://{}", self.watch.ground().domain);
            response.bundles.extend(copied(&others));
            // Ours last: no other domain's can stand in its place.
            response.bundles.insert(domain, bundle.concat_der());
            self.given = Some((roots, others));
            return frame(&response).ok_or_else(too_large);
        }
    }
}
