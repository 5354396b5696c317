//! Public areas of a TPM, and certificates of its endorsement key: no bytes panic, and what is read
//! keeps its bytes.
#![no_main]

use std::time::Duration;

use doorward::model::Moment;
use doorward::posture::tpm::{AttestationKey, Credential, EkRoots, Public};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let chain = [data.to_vec().into()];
    let roots = EkRoots::read(&chain);
    let Ok(public) = Public::parse(data) else { return };
    assert_eq!(public.bytes(), data);
    let _ = AttestationKey::new(&public);
    if let Ok(made) = Credential::make(&public, &public.name(), &[7; 32]) {
        assert!(public.is_endorsement_key() && !made.blob.is_empty());
    }
    if let Ok(roots) = roots {
        let now = Moment::new(time::OffsetDateTime::UNIX_EPOCH, Duration::ZERO);
        let _ = roots.verify(&public, &chain, now);
    }
});
