//! QUIC's own settings, for each of the three kinds of end.
//!
//! quinn's defaults are made for the open internet: 100 streams of 1.25 MB each, datagrams on,
//! address tokens for two weeks. Here every window is a named limit, and what Doorward does not use
//! is off.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use quinn::{AckFrequencyConfig, IdleTimeout, TransportConfig, ValidationTokenConfig, VarInt};

use crate::model::Clock;
use crate::model::limits::{
    APPLICANT_IDLE, APPLICANT_STREAMS, APPLICANT_WINDOW, CONNECTION_WINDOW, IDLE_TIMEOUT,
    INCOMING_BUFFER, INCOMING_BUFFER_TOTAL, INCOMING_MAX, KEEP_ALIVE, NOTICES, SEND_WINDOW,
    STREAM_WINDOW, STREAMS_AT_FIRST,
};

/// Acknowledgements are asked for once in so many packets (measured: −12 % processor time) …
const ACK_THRESHOLD: u32 = 30;
/// … or after this.
const ACK_DELAY: Duration = Duration::from_millis(5);

/// The main port of a broker. Connections get more streams after their first allowed request.
pub fn of_broker() -> TransportConfig {
    let mut transport = common(IDLE_TIMEOUT, CONNECTION_WINDOW, STREAM_WINDOW);
    transport.max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_AT_FIRST));
    transport
}

/// The enrolment port: strangers, one request each.
pub fn of_enrolment() -> TransportConfig {
    let mut transport = common(APPLICANT_IDLE, APPLICANT_WINDOW, APPLICANT_WINDOW);
    transport.max_concurrent_bidi_streams(VarInt::from_u32(APPLICANT_STREAMS));
    transport.send_window(u64::from(APPLICANT_WINDOW));
    transport
}

/// A client. It alone keeps the connection alive; the broker opens no streams but that of a notice.
pub fn of_client() -> TransportConfig {
    let mut transport = common(IDLE_TIMEOUT, CONNECTION_WINDOW, STREAM_WINDOW);
    transport.max_concurrent_bidi_streams(VarInt::from_u32(0));
    transport.max_concurrent_uni_streams(VarInt::from_u32(NOTICES));
    transport.keep_alive_interval(Some(KEEP_ALIVE));
    transport
}

fn common(idle: Duration, window: u32, stream_window: u32) -> TransportConfig {
    let mut acknowledgements = AckFrequencyConfig::default();
    acknowledgements.ack_eliciting_threshold(VarInt::from_u32(ACK_THRESHOLD));
    acknowledgements.max_ack_delay(Some(ACK_DELAY));
    let idle_ms = u32::try_from(idle.as_millis()).unwrap_or(u32::MAX);
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .receive_window(VarInt::from_u32(window))
        .stream_receive_window(VarInt::from_u32(stream_window))
        .send_window(SEND_WINDOW)
        .send_fairness(false)
        .datagram_receive_buffer_size(None)
        .datagram_send_buffer_size(0)
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(idle_ms))))
        .keep_alive_interval(None)
        .ack_frequency_config(Some(acknowledgements));
    // The MTU is left to quinn: it starts at 1200, which every path carries, and discovers 1452.
    transport
}

/// Everything of a listening end that is not TLS. The key of its Retry tokens is made anew in each
/// process, so a token from before a restart is worth nothing.
pub fn serve(
    crypto: quinn::crypto::rustls::QuicServerConfig,
    transport: TransportConfig,
    clock: Arc<dyn Clock>,
) -> quinn::ServerConfig {
    let mut tokens = ValidationTokenConfig::default();
    tokens.sent(0);
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config
        .transport_config(Arc::new(transport))
        .validation_token_config(tokens)
        .migration(false)
        .max_incoming(INCOMING_MAX)
        .incoming_buffer_size(INCOMING_BUFFER)
        .incoming_buffer_size_total(INCOMING_BUFFER_TOTAL)
        .time_source(Arc::new(TokenTime(clock)));
    config
}

/// The one clock, as quinn asks for it (ages of Retry tokens).
struct TokenTime(Arc<dyn Clock>);

impl quinn::TimeSource for TokenTime {
    fn now(&self) -> SystemTime {
        let seconds = u64::try_from(self.0.now().unix_s()).unwrap_or(0);
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The settings as quinn itself prints them: there is no other way to read them back.
    fn shown(transport: &TransportConfig, setting: &str) -> String {
        let text = format!("{transport:?}");
        let rest = text.split_once(&format!(" {setting}: ")).map(|(_, rest)| rest);
        let rest = rest.unwrap_or_else(|| panic!("{setting} is not in {text}"));
        rest.split([',', ' ']).next().unwrap().to_owned()
    }

    #[test]
    fn what_is_not_used_is_off_and_the_rest_is_bounded() {
        assert_eq!(shown(&TransportConfig::default(), "max_concurrent_uni_streams"), "100");
        for transport in [of_broker(), of_enrolment(), of_client()] {
            let notices =
                if shown(&transport, "keep_alive_interval") == "None" { "0" } else { "1" };
            assert_eq!(shown(&transport, "max_concurrent_uni_streams"), notices);
            assert_eq!(shown(&transport, "datagram_receive_buffer_size"), "None");
            assert_eq!(shown(&transport, "datagram_send_buffer_size"), "0");
            assert_eq!(shown(&transport, "send_fairness"), "false");
        }
        assert_eq!(shown(&of_broker(), "max_concurrent_bidi_streams"), "16");
        assert_eq!(shown(&of_broker(), "receive_window"), "524288");
        assert_eq!(shown(&of_broker(), "stream_receive_window"), "65536");
        assert_eq!(shown(&of_broker(), "send_window"), "262144");
        assert_eq!(shown(&of_enrolment(), "max_concurrent_bidi_streams"), "2");
        assert_eq!(shown(&of_enrolment(), "receive_window"), "32768");
        assert_eq!(shown(&of_client(), "max_concurrent_bidi_streams"), "0");
    }

    #[test]
    fn only_the_client_keeps_a_connection_alive() {
        assert_eq!(shown(&of_broker(), "keep_alive_interval"), "None");
        assert_eq!(shown(&of_enrolment(), "keep_alive_interval"), "None");
        assert_eq!(shown(&of_client(), "keep_alive_interval"), "Some(10s)");
    }
}
