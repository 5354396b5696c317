//! Proofs of possession at enrolment: what is read reads back to the same, and none of them counts for
//! this connection, because nobody has signed it.
#![no_main]

use doorward::identity::{DeviceProof, DeviceRoots};
use doorward::model::TrustDomain;
use libfuzzer_sys::fuzz_target;

fn look(proof: &DeviceProof) {
    let domain = TrustDomain::parse("corp.example").expect("a good name");
    assert!(proof.possessed(&[7; 32], b"key", &domain).is_err(), "nobody signed it");
    let _ = DeviceRoots::read(&proof.chain);
}

fuzz_target!(|data: &[u8]| {
    if let Ok(proof) = DeviceProof::read(data) {
        look(&proof);
        assert_eq!(DeviceProof::read(&proof.body()).expect("it reads back"), proof);
    }
    // The same bytes as certificates and signature, so that the readers below base64 are reached.
    let (certificate, signature) = data.split_at(data.len() / 4 * 3);
    let chain = vec![certificate.to_vec().into(), data.to_vec().into()];
    look(&DeviceProof { chain, signature: signature.to_vec() });
});
