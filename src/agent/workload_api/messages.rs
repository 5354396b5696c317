//! The messages of the SPIFFE Workload API that this agent speaks (SPIFFE Workload API §5; the tags
//! are the standard's), and their frames.
//!
//! A message that carries a private key is encoded once, into a buffer of its final size that is
//! wiped when its last byte has been taken; the fields are wiped with the message.

use std::collections::HashMap;

use prost::Message;
use tonic::codegen::Bytes;
use zeroize::{Zeroize, Zeroizing};

/// What comes before each message in a gRPC stream: a flag of compression, and the length.
pub(super) const PREFIX: usize = 5;

/// The request of both X.509 calls: no fields.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Nothing {}

/// One identity with its key.
#[derive(PartialEq, Message)]
#[prost(skip_debug)]
pub(super) struct X509Svid {
    /// `spiffe://…`
    #[prost(string, tag = "1")]
    pub(super) spiffe_id: String,
    /// Certificates, DER, one behind the other, leaf first.
    #[prost(bytes = "vec", tag = "2")]
    pub(super) x509_svid: Vec<u8>,
    /// PKCS#8, DER, not encrypted.
    #[prost(bytes = "vec", tag = "3")]
    pub(super) x509_svid_key: Vec<u8>,
    /// Roots of the identity's own trust domain, DER, one behind the other.
    #[prost(bytes = "vec", tag = "4")]
    pub(super) bundle: Vec<u8>,
    /// A word of the operator's that tells several identities apart.
    #[prost(string, tag = "5")]
    pub(super) hint: String,
}

impl std::fmt::Debug for X509Svid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "X509Svid({})", self.spiffe_id)
    }
}

impl Drop for X509Svid {
    fn drop(&mut self) {
        self.x509_svid_key.zeroize();
    }
}

/// All identities of the caller, the default one first.
#[derive(PartialEq, Message)]
pub(super) struct X509SvidResponse {
    /// Them.
    #[prost(message, repeated, tag = "1")]
    pub(super) svids: Vec<X509Svid>,
    /// Revocation lists, DER. None are made: what is revoked is told by silence.
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub(super) crl: Vec<Vec<u8>>,
    /// Roots of other trust domains, by `spiffe://<trust domain>`.
    #[prost(map = "string, bytes", tag = "3")]
    pub(super) federated_bundles: HashMap<String, Vec<u8>>,
}

/// All roots that the caller may trust.
#[derive(PartialEq, Message)]
pub(super) struct X509BundlesResponse {
    /// Revocation lists, DER.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub(super) crl: Vec<Vec<u8>>,
    /// Roots, DER, one behind the other, by `spiffe://<trust domain>`.
    #[prost(map = "string, bytes", tag = "2")]
    pub(super) bundles: HashMap<String, Vec<u8>>,
}

/// A message as it stands in a gRPC stream. Wiped when the last who holds it lets it go.
pub(super) fn frame(message: &impl Message) -> Option<Bytes> {
    let length = message.encoded_len();
    let mut frame = Zeroizing::new(Vec::with_capacity(PREFIX.checked_add(length)?));
    frame.push(0); // not compressed
    frame.extend_from_slice(&u32::try_from(length).ok()?.to_be_bytes());
    message.encode(&mut *frame).ok()?; // into room that is there: nothing is moved and left behind
    Some(Bytes::from_owner(frame))
}

/// The one message of a request, out of its whole body; `None` if it is anything else.
pub(super) fn only_message<M: Message + Default>(body: &[u8]) -> Option<M> {
    let (flag, rest) = body.split_first()?;
    let (length, message) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    if *flag != 0 || length != message.len() {
        return None;
    }
    M::decode(message).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn svid() -> X509Svid {
        X509Svid {
            spiffe_id: "spiffe://d/a".into(),
            x509_svid: vec![1, 2],
            x509_svid_key: vec![7; 3],
            bundle: vec![4],
            hint: String::new(),
        }
    }

    #[test]
    fn the_bytes_are_the_standards_own() {
        let response = X509SvidResponse {
            svids: vec![svid()],
            crl: Vec::new(),
            federated_bundles: HashMap::from([("spiffe://e".into(), vec![9])]),
        };
        let inner = b"\x0a\x0cspiffe://d/a\x12\x02\x01\x02\x1a\x03\x07\x07\x07\x22\x01\x04";
        let map = b"\x1a\x0f\x0a\x0aspiffe://e\x12\x01\x09";
        let mut want = vec![0, 0, 0, 0, 0, 0x0a, u8::try_from(inner.len()).unwrap()];
        want.extend_from_slice(inner);
        want.extend_from_slice(map);
        want[4] = u8::try_from(want.len() - PREFIX).unwrap();
        assert_eq!(frame(&response).unwrap(), want);

        let bundles = X509BundlesResponse {
            crl: Vec::new(),
            bundles: HashMap::from([("spiffe://e".into(), vec![9])]),
        };
        assert_eq!(&frame(&bundles).unwrap()[PREFIX..], b"\x12\x0f\x0a\x0aspiffe://e\x12\x01\x09");
    }

    #[test]
    fn a_key_is_not_shown() {
        let shown = format!("{:?}", svid());
        assert_eq!(shown, "X509Svid(spiffe://d/a)");
    }

    #[test]
    fn a_request_is_one_whole_plain_message() {
        assert_eq!(only_message::<Nothing>(&[0; 5]), Some(Nothing {}), "the positive control");
        let unknown_field = [0, 0, 0, 0, 2, 0x08, 0x01];
        assert!(only_message::<Nothing>(&unknown_field).is_some(), "a later version's");
        for bad in [
            &[][..],
            &[0; 4],
            &[1, 0, 0, 0, 0],
            &[0, 0, 0, 0, 1],
            &[0; 6],
            &[0, 0xff, 0xff, 0xff, 0xff, 0],
            &[0, 0, 0, 0, 1, 0x0f],
        ] {
            assert_eq!(only_message::<Nothing>(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(body in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = only_message::<Nothing>(&body);
            let _ = only_message::<X509SvidResponse>(&body);
        }
    }
}
