//! What a TPM says of itself and signs (TPMS_ATTEST, TPM 2.0 Part 2 §10.12): quotes and certified
//! keys.
//!
//! Only structure is read here; nothing of it is believed before [`super::AttestationKey`] has seen
//! the signature. The selection of PCRs that counts is this signed one, never one beside it.

use super::bytes::{Malformed, Reader};
use super::public::padded;
use crate::model::limits::{PCR_BANKS_MAX, TPM_ATTEST_MAX, TPM_SIGNATURE_MAX};

/// TPM_GENERATED_VALUE: a restricted key signs nothing else that begins like this.
const MAGIC: u32 = 0xff54_4347;
const CERTIFY: u16 = 0x8017;
const QUOTE: u16 = 0x8018;
/// A name, a qualified name or a qualifier: a hash with its number.
const NAME_MAX: usize = 66;

/// Which PCRs, bank by bank: the hash's number, and bit i for PCR i.
pub type Selection = Vec<(u16, u32)>;

/// The TPM's own counters (TPMS_CLOCK_INFO).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counters {
    /// Milliseconds that it was powered.
    pub clock: u64,
    /// Resets: raised by each reboot.
    pub resets: u32,
    /// Restarts and resumes since the last reset.
    pub restarts: u32,
    /// No greater clock was ever shown than this one.
    pub safe: bool,
}

impl Counters {
    /// Whether a TPM that showed `before` can show these now. A TPM that was cleared can't: it
    /// counts anew, and so does another one.
    pub fn can_follow(&self, before: &Self) -> bool {
        let boots = |it: &Self| (it.resets, it.restarts);
        match boots(self).cmp(&boots(before)) {
            std::cmp::Ordering::Less => false,
            std::cmp::Ordering::Equal => self.clock >= before.clock,
            // After a power cut the clock may be some minutes behind.
            std::cmp::Ordering::Greater => true,
        }
    }
}

/// One statement, as it stands in the bytes that were signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attest<'a> {
    /// The qualified name of the key that signed; says less than the key itself.
    pub signer: &'a [u8],
    /// What whoever asked gave to be signed with it.
    pub extra: &'a [u8],
    /// The TPM's counters.
    pub counters: Counters,
    /// Its firmware.
    pub firmware: u64,
    /// What it is about.
    pub attested: Attested<'a>,
}

/// What a statement is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attested<'a> {
    /// The state of PCRs.
    Quote {
        /// Which.
        selection: Selection,
        /// The hash of their values, one after the other.
        digest: &'a [u8],
    },
    /// That an object is in this TPM.
    Certify {
        /// Its name.
        name: &'a [u8],
    },
}

impl<'a> Attest<'a> {
    /// Reads a whole statement.
    ///
    /// # Errors
    /// Where it ends too early or late, or says something else than a quote or a certified object.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        if bytes.len() > TPM_ATTEST_MAX {
            return Err(Malformed("length"));
        }
        let mut reader = Reader::new(bytes);
        if reader.u32("magic")? != MAGIC {
            return Err(Malformed("magic"));
        }
        let kind = reader.u16("type")?;
        if !matches!(kind, QUOTE | CERTIFY) {
            return Err(Malformed("type"));
        }
        let signer = reader.sized(NAME_MAX, "signer")?;
        let extra = reader.sized(NAME_MAX, "extra data")?;
        let (clock, resets) = (reader.u64("clock")?, reader.u32("reset count")?);
        let restarts = reader.u32("restart count")?;
        let safe = match reader.u8("safe")? {
            0 => false,
            1 => true,
            _ => return Err(Malformed("safe")),
        };
        let firmware = reader.u64("firmware")?;
        let attested = match kind {
            QUOTE => {
                let selection = selection(&mut reader)?;
                Attested::Quote { selection, digest: reader.sized(64, "pcr digest")? }
            }
            _ => {
                let name = reader.sized(NAME_MAX, "name")?;
                reader.sized(NAME_MAX, "qualified name")?;
                Attested::Certify { name }
            }
        };
        reader.end("end")?;
        let counters = Counters { clock, resets, restarts, safe };
        Ok(Self { signer, extra, counters, firmware, attested })
    }
}

/// TPML_PCR_SELECTION.
pub(super) fn selection(reader: &mut Reader<'_>) -> Result<Selection, Malformed> {
    const WHAT: &str = "pcr selection";
    let banks = usize::try_from(reader.u32(WHAT)?).map_err(|_| Malformed(WHAT))?;
    if banks > PCR_BANKS_MAX {
        return Err(Malformed(WHAT));
    }
    let mut selection = Selection::with_capacity(banks);
    for _ in 0..banks {
        let hash = reader.u16(WHAT)?;
        let length = usize::from(reader.u8(WHAT)?);
        if !(1..=4).contains(&length) {
            return Err(Malformed(WHAT));
        }
        let mut bits = [0; 4];
        for (bits, byte) in bits.iter_mut().zip(reader.take(length, WHAT)?) {
            *bits = *byte;
        }
        selection.push((hash, u32::from_le_bytes(bits)));
    }
    Ok(selection)
}

/// An ECDSA signature with SHA-256 on P-256 (TPMT_SIGNATURE) as r ‖ s, each in its full width.
///
/// # Errors
/// When it is of another kind, cut, trailed, or a number is too wide.
pub fn ecdsa_p256(bytes: &[u8]) -> Result<[u8; 64], Malformed> {
    const WHAT: &str = "signature";
    if bytes.len() > TPM_SIGNATURE_MAX {
        return Err(Malformed(WHAT));
    }
    let mut reader = Reader::new(bytes);
    if reader.u16(WHAT)? != super::alg::ECDSA || reader.u16(WHAT)? != super::alg::SHA256 {
        return Err(Malformed(WHAT));
    }
    let mut signature = [0; 64];
    let (r, s) = signature.split_at_mut(32);
    for half in [r, s] {
        let number: [u8; 32] = padded(reader.sized(32, WHAT)?).ok_or(Malformed(WHAT))?;
        half.copy_from_slice(&number);
    }
    reader.end(WHAT)?;
    Ok(signature)
}

#[cfg(test)]
mod tests {
    use super::super::bytes::Writer;
    use super::super::vectors::vector;
    use super::*;
    use crate::model::Digest;
    use proptest::prelude::*;

    #[test]
    fn a_quote_and_a_certified_key_of_swtpm_are_read() {
        let bytes = vector("quote");
        let quote = Attest::parse(&bytes).unwrap();
        assert_eq!(quote.extra, Digest::of(b"extra").0);
        assert_eq!(
            (quote.counters.resets, quote.counters.restarts, quote.counters.safe),
            (2, 0, true)
        );
        let Attested::Quote { selection, digest } = &quote.attested else { panic!("{quote:?}") };
        assert_eq!(selection, &[(0x0b, 0b100_1001_0101)]);
        assert_eq!(*digest, Digest::of(&[0; 160]).0);
        let bytes = vector("certify");
        let certify = Attest::parse(&bytes).unwrap();
        assert!(matches!(certify.attested, Attested::Certify { name } if name.len() == 34));
        assert!(certify.counters.can_follow(&quote.counters));
        assert!(!quote.counters.can_follow(&certify.counters));
    }

    #[test]
    fn nothing_is_cut_trailed_or_of_another_kind() {
        for name in ["quote", "certify"] {
            let good = vector(name);
            for end in 0..good.len() {
                assert!(Attest::parse(&good[..end]).is_err(), "{name} cut at {end}");
            }
            assert_eq!(Attest::parse(&[&good[..], &[0]].concat()), Err(Malformed("end")));
            for (at, byte, field) in [(0, 0, "magic"), (3, 0x48, "magic"), (5, 0x19, "type")] {
                let mut bad = good.clone();
                bad[at] = byte;
                assert_eq!(Attest::parse(&bad), Err(Malformed(field)), "{name}");
            }
        }
        // Seventeen banks, and a bitmap of five bytes.
        let select = |banks: u32, size: u8| {
            let writer = Writer::default().u32(banks);
            let bank = |w: Writer| w.u16(0x0b).u8(size).raw(&vec![0; size.into()]);
            let bytes = (0..banks).fold(writer, |writer, _| bank(writer)).done();
            selection(&mut Reader::new(&bytes))
        };
        assert!(select(16, 4).is_ok() && select(0, 3).is_ok());
        for (banks, size) in [(17, 3), (1, 5), (1, 0), (u32::MAX >> 24, 3)] {
            assert!(select(banks, size).is_err(), "{banks} {size}");
        }
        let huge = Writer::default().u32(u32::MAX).done();
        assert!(selection(&mut Reader::new(&huge)).is_err());
    }

    #[test]
    fn short_numbers_of_a_signature_are_padded_and_long_ones_refused() {
        let signature = |r: &[u8], s: &[u8]| {
            let bytes = Writer::default().u16(0x18).u16(0x0b).sized(r).sized(s).done();
            ecdsa_p256(&bytes)
        };
        let padded = signature(&[1; 31], &[2; 32]).unwrap();
        assert_eq!((padded[0], &padded[1..32], &padded[32..]), (0, &[1; 31][..], &[2; 32][..]));
        assert_eq!(signature(&[], &[]).unwrap(), [0; 64]);
        assert!(signature(&[1; 33], &[2; 32]).is_err() && signature(&[1; 32], &[2; 33]).is_err());
        assert!(ecdsa_p256(&vector("quote_sig")).is_ok());
        assert!(ecdsa_p256(&[&vector("quote_sig")[..], &[0]].concat()).is_err());
        let mut other = vector("quote_sig");
        other[1] = 0x14; // RSASSA
        assert!(ecdsa_p256(&other).is_err());
    }

    #[test]
    fn counters_go_forward_only() {
        let at = |resets, restarts, clock| Counters { clock, resets, restarts, safe: true };
        let before = at(2, 1, 100);
        for after in [at(2, 1, 100), at(2, 1, 101), at(2, 2, 5), at(3, 0, 5)] {
            assert!(after.can_follow(&before), "{after:?}");
        }
        for after in [at(2, 1, 99), at(2, 0, 200), at(1, 9, 200), at(0, 0, 0)] {
            assert!(!after.can_follow(&before), "{after:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Attest::parse(&bytes);
            let _ = ecdsa_p256(&bytes);
        }

        #[test]
        fn what_is_near_a_good_one_panics_nothing(at in 0_usize..160, byte in any::<u8>(), quote in any::<bool>()) {
            let mut bytes = vector(if quote { "quote" } else { "certify" });
            if let Some(it) = bytes.get_mut(at) { *it = byte; }
            let _ = Attest::parse(&bytes);
        }
    }
}
