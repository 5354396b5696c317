//! The verification of quotes: what a report with one costs the broker.

use std::time::{Duration, Instant};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::{Value, json};

use crate::model::Digest;
use crate::posture::tpm::{AttestationKey, PcrValues, Public, Template, Writer, alg};

/// The registers that are quoted: 0, 2, 4, 7 and 11.
const PCRS: [u8; 5] = [0, 2, 4, 7, 11];

fn words(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// A quote as a TPM makes it, by a key of our own.
struct Quote {
    key: AttestationKey,
    attest: Vec<u8>,
    signature: Vec<u8>,
    extra: Digest,
    values: PcrValues,
}

impl Quote {
    fn make() -> Result<Self, String> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).map_err(words)?;
        let point = pair.public_key().as_ref().get(1..).unwrap_or_default();
        let (x, y) = point.split_at_checked(32).ok_or("a point of another length")?;
        // The template ends with its two coordinates: 34 and 2 bytes.
        let template = Template::AttestationKey.bytes();
        let head = template.len().checked_sub(36).and_then(|end| template.get(..end));
        let area = Writer::default().raw(head.unwrap_or_default()).sized(x).sized(y).done();
        let key = AttestationKey::new(&Public::parse(&area).map_err(words)?).map_err(words)?;
        let values: PcrValues = PCRS.iter().map(|pcr| (*pcr, [*pcr; 32])).collect();
        let all: Vec<u8> = values.values().flatten().copied().collect();
        let extra = Digest::of(b"a question");
        let attest = Writer::default()
            .u32(0xff54_4347)
            .u16(0x8018)
            .sized(&[0; 34])
            .sized(&extra.0)
            .raw(&[0; 16])
            .u8(1)
            .raw(&[0; 8])
            .u32(1)
            .u16(alg::SHA256)
            .u8(3)
            .raw(&[0x95, 0x08, 0])
            .sized(&Digest::of(&all).0)
            .done();
        let signed = pair.sign(&SystemRandom::new(), &attest).map_err(words)?;
        let (r, s) = signed.as_ref().split_at_checked(32).ok_or("a signature of another length")?;
        let signature = Writer::default().u16(alg::ECDSA).u16(alg::SHA256).sized(r).sized(s).done();
        Ok(Self { key, attest, signature, extra, values })
    }
}

/// Verifies quotes for so long.
///
/// # Errors
/// In words.
pub fn bench_quotes(length: Duration) -> Result<Value, String> {
    let quote = Quote::make()?;
    let (mut times, began) = (Vec::new(), Instant::now());
    while began.elapsed() < length {
        let start = Instant::now();
        quote
            .key
            .quoted(&quote.attest, &quote.signature, &quote.extra, &quote.values)
            .map_err(words)?;
        times.push(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }
    times.sort_unstable();
    let us = |part: f64| super::bench::at(&times, part);
    Ok(json!({ "shape": "quotes", "p50_us": us(0.5), "p99_us": us(0.99) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_measured_is_a_quote_that_holds() {
        let quote = Quote::make().unwrap();
        let holds =
            |extra| quote.key.quoted(&quote.attest, &quote.signature, extra, &quote.values).is_ok();
        assert!(holds(&quote.extra) && !holds(&Digest::of(b"another")));
        assert_eq!(bench_quotes(Duration::from_millis(1)).unwrap()["shape"], "quotes");
    }
}
