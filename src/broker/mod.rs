//! The line, the listener, the connections.
//!
//! Every request of every transport climbs [`Line::answer`]; there is no second way in.

mod connections;
mod fresh;
mod half_open;
mod line;
mod listener;
mod metrics;
mod noted;
mod outcome;
mod rates;
mod shown;
mod traffic;

pub use connections::{Connections, time_left};
pub use line::{Line, LineParts};
pub use listener::{Door, Listener, Port, Spawn};
pub use metrics::Metrics;
pub use outcome::{Body, Ready};
pub use rates::{Rates, Source};
