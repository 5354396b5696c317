//! The client against a real TPM 2.0 implementation, judged by the verifier's side.

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::swtpm::{Swtpm, is_here};
use super::thread::Tpm;
use super::{Link, Place, TpmError};
use crate::model::Digest;
use crate::posture::tpm::{
    AttestError, AttestationKey, Credential, Malformed, PcrValues, PublicKey, Template,
};

const SALT: [u8; 32] = [7; 32];

fn extra() -> Digest {
    Digest::of(b"a question")
}

fn attestation_key(link: &mut Link) -> (u32, AttestationKey) {
    let key = link.create_primary(&Template::AttestationKey.bytes()).unwrap();
    (key.handle, AttestationKey::new(&key.public).unwrap())
}

#[test]
fn a_quote_is_believed_by_the_verifier_and_only_for_its_question() {
    if !is_here() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let tpm = Swtpm::fresh(dir.path(), "one");
    let mut link = Link::new(tpm.place.parse().unwrap());
    let (handle, key) = attestation_key(&mut link);
    let bits = 0b1111_0000_0000_1111_1111_1111;
    let values = link.pcrs(bits).unwrap();
    assert_eq!(values.len(), 16);
    let quote = link.quote(handle, &extra(), bits).unwrap();
    let first = key.quoted(&quote.attest, &quote.signature, &extra(), &values).unwrap();
    let second = link.quote(handle, &extra(), bits).unwrap();
    let second = key.quoted(&second.attest, &second.signature, &extra(), &values).unwrap();
    assert!(second.can_follow(&first));
    let fewer: PcrValues = values.iter().take(3).map(|(pcr, value)| (*pcr, *value)).collect();
    let error = key.quoted(&quote.attest, &quote.signature, &extra(), &fewer).unwrap_err();
    assert_eq!(error, AttestError::Selection);
    let cut = &quote.attest[..quote.attest.len() - 1];
    let error = key.quoted(cut, &quote.signature, &extra(), &values).unwrap_err();
    assert_eq!(error, AttestError::Signature);
}

#[test]
fn the_same_keys_come_back_after_a_reboot_and_the_counters_rise() {
    if !is_here() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut tpm = Swtpm::fresh(dir.path(), "one");
    let look = |tpm: &Swtpm| {
        let mut link = Link::new(tpm.place.parse().unwrap());
        let (handle, key) = attestation_key(&mut link);
        let quote = link.quote(handle, &extra(), 1).unwrap();
        let values = link.pcrs(1).unwrap();
        let counters = key.quoted(&quote.attest, &quote.signature, &extra(), &values).unwrap();
        (key.name().to_vec(), link.device_key(&SALT).unwrap().public, counters)
    };
    let before = look(&tpm);
    // Power cuts: an attestation key without noDA would fail at the first, and be locked at the third.
    for _ in 0..3 {
        tpm.reboot();
        let after = look(&tpm);
        assert_eq!((&after.0, &after.1), (&before.0, &before.1));
        assert!(after.2.resets > before.2.resets && after.2.can_follow(&before.2));
        assert!(!before.2.can_follow(&after.2));
    }
    clear(&tpm);
    let after = look(&tpm);
    assert_eq!((&after.0, &after.1), (&before.0, &before.1), "a new owner changes nothing");
    let other = Swtpm::fresh(dir.path(), "other");
    let other = look(&other);
    assert!(other.0 != before.0 && other.1 != before.1, "another TPM has other keys");
}

/// TPM2_Clear by the platform hierarchy, as a firmware's setup does it.
fn clear(tpm: &Swtpm) {
    let mut stream = UnixStream::connect(tpm.socket()).unwrap();
    let command = hex::decode("80020000001b000001264000000c00000009400000090000000000").unwrap();
    stream.write_all(&command).unwrap();
    let mut response = [0; 10];
    stream.read_exact(&mut response).unwrap();
    assert_eq!(response[6..], [0; 4], "{response:x?}");
}

#[test]
fn a_device_key_signs_is_certified_and_salts_tell_keys_apart() {
    if !is_here() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let tpm = Swtpm::fresh(dir.path(), "one");
    let mut link = Link::new(tpm.place.parse().unwrap());
    let (handle, ak) = attestation_key(&mut link);
    link.flush(handle).unwrap();
    let (signed, public) = link.certify_device_key(&SALT, &extra()).unwrap();
    assert!(public.is_device_key());
    ak.certified(&signed.attest, &signed.signature, &extra(), &public).unwrap();
    let other = link.device_key(&[8; 32]).unwrap().public;
    assert_ne!(other.spki(), public.spki());
    let error = ak.certified(&signed.attest, &signed.signature, &extra(), &other).unwrap_err();
    assert_eq!(error, AttestError::Name);
    let key = link.device_key(&SALT).unwrap();
    let signature = link.sign(key.handle, &Digest::of(b"message")).unwrap();
    let verifier = aws_lc_rs::signature::UnparsedPublicKey::new(
        &aws_lc_rs::signature::ECDSA_P256_SHA256_FIXED,
        public.spki(),
    );
    verifier.verify(b"message", &signature).unwrap();
    // The attestation key signs nothing that it is given, marked or not.
    let (handle, _) = attestation_key(&mut link);
    let forged = Digest::of(&[0xff, 0x54, 0x43, 0x47, 0x80, 0x18]);
    assert!(matches!(link.sign(handle, &forged), Err(TpmError::Refused { .. })));
}

#[test]
fn credentials_open_for_their_endorsement_and_attestation_key_only() {
    if !is_here() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (tpm, other) = (Swtpm::made(dir.path(), "one"), Swtpm::fresh(dir.path(), "other"));
    let mut link = Link::new(tpm.place.parse().unwrap());
    let secret = [9; 32];
    let (handle, ak) = attestation_key(&mut link);
    for template in [Template::EkP256, Template::EkP384, Template::EkRsa2048] {
        let ek = link.create_primary(&template.bytes()).unwrap();
        let made = Credential::make(&ek.public, ak.name(), &secret).unwrap();
        assert_eq!(link.activate(handle, &ek, &made).unwrap(), secret, "{template:?}");
        let mut broken = made.clone();
        *broken.blob.last_mut().unwrap() ^= 1;
        assert!(link.activate(handle, &ek, &broken).is_err(), "{template:?}");
        let another = Credential::make(&ek.public, &[&[0, 11][..], &[1; 32]].concat(), &secret);
        assert!(link.activate(handle, &ek, &another.unwrap()).is_err(), "{template:?}");
        link.flush(ek.handle).unwrap();
    }
    // The one that its maker has certified is found, and used.
    let prepared = link.prepare().unwrap();
    assert!(prepared.endorsement.certificate.is_some());
    assert!(matches!(prepared.endorsement.key.public.key(), PublicKey::P384 { .. }));
    let ek = &prepared.endorsement.key;
    let made = Credential::make(&ek.public, ak.name(), &secret).unwrap();
    assert_eq!(link.activate(prepared.attestation.handle, ek, &made).unwrap(), secret);
    drop(link);
    let mut stranger = Link::new(other.place.parse().unwrap());
    assert!(stranger.prepare().unwrap().endorsement.certificate.is_none());
    stranger.close();
    assert!(stranger.answer(&made).is_err());
    let mut link = Link::new(tpm.place.parse().unwrap());
    assert_eq!(link.answer(&made).unwrap(), secret);
}

#[test]
fn a_tpm_at_a_port_is_asked_by_its_thread_and_its_few_places_never_fill() {
    if !is_here() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut swtpm = Swtpm::fresh(dir.path(), "one");
    swtpm.start_tcp();
    let tpm = Tpm::at(&swtpm.place.parse().unwrap()).unwrap();
    let spki = || tpm.run(|link| Ok(link.device_key(&SALT)?.public.spki())).unwrap();
    let first = spki();
    for _ in 0..8 {
        tpm.run(|link| link.certify_device_key(&SALT, &extra())).unwrap();
        assert_eq!(spki(), first);
    }
    // Two that were forgotten, and a thread that panics, are no reason to fail later.
    let panicked = tpm.run(|link| -> Result<(), TpmError> {
        link.create_primary(&Template::AttestationKey.bytes())?;
        link.create_primary(&Template::EkP256.bytes())?;
        panic!("a test's own");
    });
    assert!(matches!(panicked, Err(TpmError::Gone)));
    assert_eq!(spki(), first);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    runtime.block_on(async { assert_eq!(spki(), first) });
    swtpm.stop();
    assert!(matches!(tpm.run(|link| link.pcrs(1)), Err(TpmError::Io(_))));
    swtpm.start_tcp();
    let again = Tpm::at(&swtpm.place.parse().unwrap()).unwrap();
    assert_eq!(again.run(|link| Ok(link.device_key(&SALT)?.public.spki())).unwrap(), first);
}

/// Stands between a client and a TPM, and answers each command first with what it is told to.
fn between(dir: &Path, to: &Path, codes: &'static [u32]) -> (Place, Arc<AtomicUsize>) {
    let path = dir.join("between");
    let listener = UnixListener::bind(&path).unwrap();
    let (to, sent) = (to.to_owned(), Arc::new(AtomicUsize::new(0)));
    let count = sent.clone();
    std::thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut tpm = UnixStream::connect(to).unwrap();
        let read = |from: &mut UnixStream| {
            let mut message = vec![0; 10];
            from.read_exact(&mut message).ok()?;
            let length = u32::from_be_bytes(message[2..6].try_into().unwrap());
            message.resize(length.try_into().unwrap(), 0);
            from.read_exact(&mut message[10..]).ok()?;
            Some(message)
        };
        let mut codes = codes.iter().cycle();
        while let Some(command) = read(&mut client) {
            count.fetch_add(1, Ordering::Relaxed);
            let code = *codes.next().unwrap();
            let reply = match code {
                0 => {
                    tpm.write_all(&command).unwrap();
                    read(&mut tpm).unwrap()
                }
                code => [&[0x80, 1, 0, 0, 0, 10][..], &code.to_be_bytes()].concat(),
            };
            if client.write_all(&reply).is_err() {
                return;
            }
        }
    });
    (Place::Unix(path), sent)
}

#[test]
fn what_a_tpm_puts_off_is_sent_again_and_not_for_ever() {
    if !is_here() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let tpm = Swtpm::fresh(dir.path(), "one");
    let straight = Link::new(tpm.place.parse().unwrap()).device_key(&SALT).unwrap().public;
    let (place, sent) = between(dir.path(), &tpm.socket(), &[0x922, 0x908, 0x90a, 0]);
    let mut link = Link::new(place);
    assert_eq!(link.device_key(&SALT).unwrap().public, straight);
    drop(link);
    assert!(sent.load(Ordering::Relaxed) >= 4);

    for (name, codes, want) in [
        ("retry", &[0x922][..], "in time"),
        ("locked", &[0x921][..], "0x921"),
        ("odd", &[0x101][..], "0x101"),
    ] {
        let below = dir.path().join(name);
        std::fs::create_dir(&below).unwrap();
        let codes: &'static [u32] = Box::leak(codes.to_vec().into_boxed_slice());
        let (place, sent) = between(&below, &tpm.socket(), codes);
        let error = Link::new(place).pcrs(1).unwrap_err();
        assert!(error.to_string().contains(want), "{name}: {error}");
        assert!(sent.load(Ordering::Relaxed) < 60, "{name}");
    }
}

#[test]
fn what_is_no_response_is_no_answer() {
    let dir = tempfile::tempdir().unwrap();
    let answers: [(&str, Vec<u8>); 4] = [
        ("cut", vec![0x80, 1, 0, 0]),
        ("short", vec![0x80, 1, 0, 0, 0, 12, 0, 0, 0, 0, 1, 2]),
        ("huge", vec![0x80, 1, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]),
        ("lies", [&[0x80, 1, 0, 0, 0, 30, 0, 0, 0, 0][..], &[0xff; 20]].concat()),
    ];
    for (name, answer) in answers {
        let path = dir.path().join(name);
        let listener = UnixListener::bind(&path).unwrap();
        let serving = std::thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            let mut command = [0; 512];
            while let Ok(length) = client.read(&mut command) {
                if length == 0 || client.write_all(&answer).is_err() || answer.len() < 10 {
                    return;
                }
            }
        });
        let error = Link::new(Place::Unix(path)).read_public(0x8101_0001).unwrap_err();
        let is_io = matches!(name, "cut" | "huge");
        match error {
            TpmError::Io(_) if is_io => {}
            TpmError::Malformed { source: Malformed(_), .. } if !is_io => {}
            other => panic!("{name}: {other:?}"),
        }
        serving.join().unwrap();
    }
}
