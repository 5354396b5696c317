//! What a TPM is said to have signed: no bytes panic, and none of them counts, because no TPM has
//! signed them for this question.
#![no_main]

use doorward::model::{Digest, TrustDomain};
use doorward::posture::tpm::{Attest, AttestationKey, PcrValues, Public, TpmProof, ecdsa_p256};
use libfuzzer_sys::fuzz_target;

/// An attestation key that swtpm made.
const KEY: &str = "0023000b00050472000000100018000b000300100020690ed07dd845ea698f2ceb3a684dc32d1cdc\
                   eb753292ff224f26ba4190af5e39002020e0d1456aff22d0c5e549d26f0c4b9be0ef9e20d732ee32\
                   4817e8f02d5018e9";

fn key() -> AttestationKey {
    let digits = KEY.as_bytes().chunks(2).map(|two| std::str::from_utf8(two).expect("digits"));
    let area: Vec<u8> = digits.map(|two| u8::from_str_radix(two, 16).expect("a byte")).collect();
    AttestationKey::new(&Public::parse(&area).expect("a key")).expect("an attestation key")
}

fuzz_target!(|data: &[u8]| {
    let _ = Attest::parse(data);
    let _ = ecdsa_p256(data);
    let values: PcrValues = [(7, [0; 32])].into();
    let (attest, signature) = data.split_at(data.len() / 3 * 2);
    assert!(key().quoted(attest, signature, &Digest([7; 32]), &values).is_err(), "nobody signed it");
    if let Ok(proof) = TpmProof::read(data) {
        assert_eq!(TpmProof::read(&proof.body()).expect("it reads back"), proof);
        let domain = TrustDomain::parse("corp.example").expect("a good name");
        assert!(proof.certified(&[7; 32], b"key", &domain).is_err(), "it is of no connection");
    }
});
