//! Authorities below a company's: what is made, how others and we ourselves judge what it signs, and a
//! whole life of them, from a root of our own and back to one.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, GeneralSubtree, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, NameConstraints, PublicKeyData as _,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::fake_store::{Room, domain, nobody};
use super::restore::EpochFloor;
use super::upstream::{ReadUpstream, UpstreamError, UpstreamFiles, made};
use crate::identity::{ApplicantVerifier, Peer, Standing, SvidError};
use crate::model::limits::{LEAF_TTL_MAX, UPSTREAM_ROOTS_MAX};
use crate::model::{
    Answer, Ask, AuthorityState as State, CaStanding, CaStep, Digest, Failure, Moment, SecretValue,
};
use rustls::client::danger::ServerCertVerifier as _;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A company's authority.
struct Company {
    key: KeyPair,
    params: CertificateParams,
    der: CertificateDer<'static>,
}

impl Company {
    fn params(name: &str, now: OffsetDateTime) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Example \u{dc}ber AG");
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = now - 100 * DAY;
        params.not_after = now + 3000 * DAY;
        params
    }

    fn root(algorithm: &'static rcgen::SignatureAlgorithm, params: CertificateParams) -> Self {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let der = params.self_signed(&key).unwrap().der().clone();
        Self { key, params, der }
    }

    fn below(
        &self,
        algorithm: &'static rcgen::SignatureAlgorithm,
        params: CertificateParams,
    ) -> Self {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let issuer = Issuer::from_params(&self.params, &self.key);
        let der = params.signed_by(&key, &issuer).unwrap().der().clone();
        Self { key, params, der }
    }

    fn files(&self, between: &[&Self], roots: &[&Self]) -> UpstreamFiles {
        let der = |it: &&Self| it.der.clone();
        UpstreamFiles {
            certificates: std::iter::once(self.der.clone())
                .chain(between.iter().map(der))
                .collect(),
            key: pkcs8(&self.key),
            roots: roots.iter().map(der).collect(),
            life: 90 * DAY,
        }
    }
}

fn pkcs8(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivatePkcs8KeyDer::from(key.serialize_der()).into()
}

fn at(room: &Room) -> OffsetDateTime {
    room.now().wall()
}

/// A root and an authority below it.
fn company(now: OffsetDateTime) -> (Company, Company) {
    let root = Company::root(&rcgen::PKCS_RSA_SHA256, Company::params("Root", now));
    let issuing = root.below(&rcgen::PKCS_ECDSA_P384_SHA384, Company::params("Issuing", now));
    (root, issuing)
}

/// Reads these files again and again, or says that they are gone.
fn reader(root: &Company, issuing: &Company) -> (ReadUpstream, Arc<Mutex<bool>>) {
    let (there, chain) = (Arc::new(Mutex::new(true)), vec![issuing.der.clone()]);
    let (roots, key, shared) = (vec![root.der.clone()], issuing.key.serialize_der(), there.clone());
    let read = move || match *shared.lock().unwrap() {
        true => Ok(UpstreamFiles {
            certificates: chain.clone(),
            key: PrivatePkcs8KeyDer::from(key.clone()).into(),
            roots: roots.clone(),
            life: 90 * DAY,
        }),
        false => Err(UpstreamError::File("can't use `up.key`: no such file".into())),
    };
    (Arc::new(read), there)
}

async fn step(room: &Room, step: CaStep) -> Result<CaStanding, Failure> {
    let asked = Ask::Ca(step);
    let target = room.authority.locate(&asked, &nobody()).await.unwrap();
    let empty = SecretValue::empty();
    let done = room.authority.act(&nobody(), &asked, &target, 7, room.now(), empty).await?;
    match done.answer {
        Answer::Authorities(standing) => Ok(standing),
        other => panic!("{other:?}"),
    }
}

const PREPARE: CaStep = CaStep::Prepare {};
const FORCED: CaStep = CaStep::Activate { after_s: None, force: true };

fn ders(texts: &[String]) -> Vec<CertificateDer<'static>> {
    texts.iter().map(|text| STANDARD.decode(text).unwrap().into()).collect()
}

/// A device's chain, what we trust, and what others are told to trust.
async fn given(
    room: &Room,
) -> (Vec<CertificateDer<'static>>, Vec<CertificateDer<'static>>, Vec<CertificateDer<'static>>) {
    let (device, key) = room.device("server").await;
    let released = room.authority.again(&device, &key, None, room.now()).await.unwrap();
    let Answer::Certificate { chain, bundle, published, .. } = released.answer else {
        panic!("no certificate")
    };
    (ders(&chain), ders(&bundle), ders(&published))
}

/// As a library that knows nothing but the published roots.
fn others_take(
    chain: &[CertificateDer<'static>],
    roots: &[CertificateDer<'static>],
    now: Moment,
) -> bool {
    let anchors: Vec<_> =
        roots.iter().map(|root| webpki::anchor_from_trusted_cert(root).unwrap()).collect();
    let leaf = webpki::EndEntityCert::try_from(&chain[0]).unwrap();
    let seconds = u64::try_from(now.unix_s()).unwrap();
    let at = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
    let usage = webpki::KeyUsage::client_auth();
    let algorithms = webpki::ALL_VERIFICATION_ALGS;
    leaf.verify_for_usage(algorithms, &anchors, &chain[1..], at, usage, None, None).is_ok()
}

#[tokio::test]
async fn it_is_an_intermediate_with_the_profile_of_a_spiffe_authority() {
    let room = Room::new().await;
    let now = at(&room);
    for algorithm in [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ED25519,
        &rcgen::PKCS_RSA_SHA256,
    ] {
        let root = Company::root(algorithm, Company::params("Root", now));
        let made = made(&root.files(&[], &[&root]), &domain(), room.now()).unwrap();
        assert!(made.above.chain.is_empty(), "the root itself signs");
        let der = STANDARD.decode(&made.certificate).unwrap();
        let (rest, read) = X509Certificate::from_der(&der).unwrap();
        let (_, above) = X509Certificate::from_der(&root.der).unwrap();
        assert!(rest.is_empty());
        assert_eq!(read.issuer().as_raw(), above.subject().as_raw(), "byte for byte");
        let constraints = read.basic_constraints().unwrap().unwrap();
        assert!(constraints.critical && constraints.value.ca);
        assert_eq!(constraints.value.path_len_constraint, Some(0));
        let usage = read.key_usage().unwrap().unwrap();
        assert!(usage.critical && usage.value.key_cert_sign() && usage.value.crl_sign());
        assert!(!usage.value.digital_signature());
        let names = &read.subject_alternative_name().unwrap().unwrap().value.general_names;
        let uri = x509_parser::extensions::GeneralName::URI("spiffe://corp.example");
        assert_eq!(names.as_slice(), [uri]);
        assert!(read.name_constraints().unwrap().is_none());
        assert_eq!(read.version().0, 2, "v3");
        assert_eq!(read.raw_serial().len(), 17);
        assert_eq!(read.validity().not_after.to_datetime(), now + 90 * DAY);
        assert_ne!(read.public_key().raw, above.public_key().raw);
    }
}

#[tokio::test]
async fn it_ends_before_whoever_stands_above_it() {
    let room = Room::new().await;
    let now = at(&room);
    let (root, issuing) = company(now);
    let end = |made: super::upstream::Made| {
        let der = STANDARD.decode(&made.certificate).unwrap();
        X509Certificate::from_der(&der).unwrap().1.validity().not_after.to_datetime()
    };
    let long = made(&issuing.files(&[], &[&root]), &domain(), room.now()).unwrap();
    assert_eq!(end(long), now + 90 * DAY, "control");
    let mut short = Company::params("Short", now);
    short.not_after = now + 10 * DAY;
    let signing = root.below(&rcgen::PKCS_ECDSA_P256_SHA256, short.clone());
    let ends = end(made(&signing.files(&[], &[&root]), &domain(), room.now()).unwrap());
    assert_eq!(ends, now + 10 * DAY, "whoever signs it");
    let short_root = Company::root(&rcgen::PKCS_ECDSA_P256_SHA256, short.clone());
    let signing = short_root.below(&rcgen::PKCS_ED25519, Company::params("Issuing", now));
    let ends = end(made(&signing.files(&[], &[&short_root]), &domain(), room.now()).unwrap());
    assert_eq!(ends, now + 10 * DAY, "and the root");
    short.not_after = now + LEAF_TTL_MAX / 2;
    let ending = root.below(&rcgen::PKCS_ECDSA_P256_SHA256, short);
    let refused = made(&ending.files(&[], &[&root]), &domain(), room.now()).err().unwrap();
    assert!(matches!(refused, UpstreamError::Ends(_)), "{refused}");
}

#[tokio::test]
async fn what_others_would_refuse_is_never_made() {
    use UpstreamError as E;
    let room = Room::new().await;
    let now = at(&room);
    let (root, issuing) = company(now);
    let under = |change: &dyn Fn(&mut CertificateParams)| {
        let mut params = Company::params("Issuing", now);
        change(&mut params);
        root.below(&rcgen::PKCS_ECDSA_P256_SHA256, params)
    };
    let made = |files: UpstreamFiles| made(&files, &domain(), room.now()).map(|_| ());
    made(issuing.files(&[], &[&root])).unwrap();
    made(issuing.files(&[&root], &[&root])).expect("a whole chain, root included");
    let deep = issuing.below(&rcgen::PKCS_ECDSA_P256_SHA256, Company::params("Deep", now));
    made(deep.files(&[&issuing], &[&root])).expect("two between a root and ours");

    let refused = |files: UpstreamFiles| match made(files) {
        Err(E::Refused(fault)) => fault,
        other => panic!("{other:?}"),
    };
    let flat = under(&|it| it.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    assert_eq!(refused(flat.files(&[], &[&root])), SvidError::PathLength);
    let leaf = under(&|it| it.is_ca = IsCa::ExplicitNoCa);
    assert_eq!(refused(leaf.files(&[], &[&root])), SvidError::IssuerNotAuthority);
    let other_use = under(&|it| it.key_usages = vec![KeyUsagePurpose::CrlSign]);
    let fault = refused(other_use.files(&[], &[&root]));
    assert_eq!(fault, SvidError::IssuerSignsNoCertificates);
    let named = under(&|it| {
        let permitted_subtrees = vec![GeneralSubtree::DnsName("corp.example".into())];
        let excluded_subtrees = Vec::new();
        it.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees });
    });
    assert_eq!(refused(named.files(&[], &[&root])), SvidError::NameConstraints);
    let ended = under(&|it| it.not_after = now - DAY);
    assert!(matches!(made(ended.files(&[], &[&root])), Err(E::Ends(_))));
    let coming = under(&|it| it.not_before = now + DAY);
    assert!(made(coming.files(&[], &[&root])).is_err());
    let (stranger, _) = company(now);
    let another = refused(issuing.files(&[], &[&stranger]));
    assert_eq!(another, SvidError::Signature, "a root of the same name");
    assert_eq!(refused(deep.files(&[], &[&root])), SvidError::UnknownIssuer, "one is missing");

    let mut swapped = issuing.files(&[], &[&root]);
    swapped.key = pkcs8(&root.key);
    assert!(matches!(made(swapped), Err(E::Key)));
    assert!(matches!(made(issuing.files(&[], &[])), Err(E::Roots)));
    let many = vec![&root; UPSTREAM_ROOTS_MAX + 1];
    assert!(matches!(made(issuing.files(&[], &many)), Err(E::Roots)));
    let long = [&deep, &issuing];
    let deeper = deep.below(&rcgen::PKCS_ECDSA_P256_SHA256, Company::params("Deeper", now));
    assert!(matches!(made(deeper.files(&long, &[&root])), Err(E::Chain)));
    for (certificates, is_empty) in
        [(Vec::new(), true), (vec![CertificateDer::from(vec![0x30, 0])], false)]
    {
        let mut files = issuing.files(&[], &[&root]);
        files.certificates = certificates;
        match made(files) {
            Err(E::Chain) => assert!(is_empty),
            Err(E::Certificate(_)) => assert!(!is_empty),
            other => panic!("{other:?}"),
        }
    }
    let flawed = Company::root(&rcgen::PKCS_ECDSA_P256_SHA256, {
        let mut params = Company::params("Flawed", now);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params
    });
    assert!(matches!(made(flawed.files(&[], &[&flawed])), Err(E::Root(_))));
}

#[tokio::test]
async fn a_rotation_moves_a_broker_below_a_company_and_everybody_goes_on() {
    let room = Room::new().await;
    let (root, issuing) = company(at(&room));
    let (read, there) = reader(&root, &issuing);
    let room = room.below(read);
    let (device, key) = room.device("server").await;
    let own = room.authority.root_digest();
    let peer = |chain: &[CertificateDer<'static>]| room.identity.peer(chain, room.now());
    let stands = |peer: &Peer| room.identity.recognise(peer, room.now()).standing();

    // Before: a root of our own, and nothing is said twice.
    let (before, bundle, published) = given(&room).await;
    assert_eq!((before.len(), bundle.len(), published.len()), (1, 1, 0));
    let first = peer(&before).unwrap();

    let prepared = step(&room, PREPARE).await.unwrap();
    let upstream = prepared.authorities[0].upstream.as_ref().unwrap();
    assert_eq!(upstream.roots, [Digest::of(&root.der)]);
    assert!(prepared.authorities[1].upstream.is_none());
    let document = room.authority.bundle_document();
    assert_eq!(document.x509_roots().len(), 2, "our root, and the company's");
    assert!(document.x509_roots().contains(&root.der));
    let (chain, bundle, published) = given(&room).await;
    assert_eq!((chain.len(), bundle.len()), (1, 2), "it signs nothing yet");
    assert_eq!(published, document.x509_roots(), "others are told before it signs");

    step(&room, FORCED).await.unwrap();
    let (after, bundle, published) = given(&room).await;
    assert_eq!(after.len(), 3, "a leaf, ours, and the company's that signed ours");
    assert_eq!(after[2], issuing.der);
    assert_eq!(Digest::of(&after[1]), room.authority.root_digest());
    assert!(bundle.contains(&after[1]) && !bundle.contains(&root.der), "we trust our own by name");
    let second = peer(&after).unwrap();
    assert_eq!((stands(&first), stands(&second)), (Standing::Live, Standing::Live));
    assert_eq!(
        stands(&peer(&after[..1]).unwrap()),
        Standing::Live,
        "what is between is for others"
    );
    // Whoever has what was published from the beginning of the change on takes both.
    assert!(others_take(&before, &published, room.now()), "before");
    assert!(others_take(&after, &published, room.now()), "after");
    assert!(others_take(&after, std::slice::from_ref(&root.der), room.now()), "by the root alone");
    assert!(!others_take(&after[..1], std::slice::from_ref(&root.der), room.now()), "control");

    // The broker shows itself to whoever knows our authority by its digest, and to others.
    let shown = room.authority.broker(room.now()).unwrap();
    assert_eq!(shown.chain[1..], after[1..]);
    assert!(others_take(&shown.chain, std::slice::from_ref(&root.der), room.now()));
    let name = "broker.corp.example".try_into().unwrap();
    for (pin, good) in [(room.authority.root_digest(), true), (Digest::of(&root.der), false)] {
        let verifier = ApplicantVerifier::for_broker(domain(), vec![pin], room.clock.clone());
        let (leaf, beside) = shown.chain.split_first().unwrap();
        let taken = verifier.verify_server_cert(leaf, beside, &name, &[], UnixTime::now());
        assert_eq!(taken.is_ok(), good, "a token names our authority, not the company's root");
    }

    // A restart without the files: what signs goes on, the next authority waits and says why.
    let again = room.again().await;
    let (read, _) = reader(&root, &issuing);
    *there.lock().unwrap() = false;
    assert_eq!(again.authority.root_digest(), room.authority.root_digest());
    assert!(again.authority.again(&device, &key, None, again.now()).await.is_ok());
    let failure = step(&room, PREPARE).await.unwrap_err();
    assert!(failure.hint.unwrap().contains("can't use `up.key`"));
    assert_eq!(step(&room, CaStep::Show {}).await.unwrap().authorities.len(), 2, "nothing changed");

    // The end of the old root: only the company's is published, which takes nothing of the old one.
    step(&room, CaStep::Revoke { id: own, force: true }).await.unwrap();
    let document = room.authority.bundle_document();
    assert_eq!(document.x509_roots(), std::slice::from_ref(&root.der));
    assert_eq!((stands(&first), stands(&second)), (Standing::Unknown, Standing::Live));

    // The next one below the same company: its root is published once.
    let room = again.below(read);
    let standing = step(&room, PREPARE).await.unwrap();
    assert!(room.authority.bundle_document().x509_roots().contains(&root.der));
    assert_eq!(standing.authorities.iter().filter(|it| it.upstream.is_some()).count(), 2);
}

#[tokio::test]
async fn a_tainted_and_a_revoked_one_end_though_their_root_stays() {
    let room = Room::new().await;
    let (root, issuing) = company(at(&room));
    let room = room.below(reader(&root, &issuing).0);
    for _ in 0..2 {
        step(&room, PREPARE).await.unwrap();
        step(&room, FORCED).await.unwrap();
    }
    let standing = step(&room, CaStep::Show {}).await.unwrap();
    let old =
        standing.authorities.iter().find(|it| it.state == State::Old && it.upstream.is_some());
    let old = old.unwrap().id;
    // What the old one signed while it signed: by a room of its own time.
    let earlier = room.authority.issuers();
    let ca = earlier.all.iter().find(|ca| ca.id() == old).unwrap();
    let (device, key) = room.device("server").await;
    let record = room.authority.mirror().device(&device).unwrap().clone();
    let of_old =
        room.authority.device_certificate(ca, device, &record, &key, room.now()).unwrap().answer;
    let Answer::Certificate { chain, .. } = of_old else { panic!("no certificate") };
    let chain = ders(&chain);
    let peer = room.identity.peer(&chain, room.now()).unwrap();
    let stands = || room.identity.recognise(&peer, room.now()).standing();
    assert_eq!(stands(), Standing::Live, "control");

    step(&room, CaStep::Taint { id: old }).await.unwrap();
    assert_eq!(stands(), Standing::Live, "whoever lives by it has time to renew");
    step(&room, CaStep::Revoke { id: old, force: true }).await.unwrap();
    assert_eq!(stands(), Standing::Unknown, "its connections end");
    let shown = room.identity.peer(&chain, room.now());
    assert_eq!(
        shown.err(),
        Some(SvidError::UnknownIssuer),
        "and it opens none, with its whole chain"
    );
    let document = room.authority.bundle_document();
    assert!(document.x509_roots().contains(&root.der), "the root of the next one stays");
    assert!(room.again().await.identity.peer(&chain, room.now()).is_err(), "also after a restart");

    // Somebody else below the company's root makes himself no identity of ours.
    let mut other = Company::params("Other", at(&room));
    other.subject_alt_names =
        vec![rcgen::SanType::URI("spiffe://corp.example".try_into().unwrap())];
    let other = root.below(&rcgen::PKCS_ECDSA_P256_SHA256, other);
    let mut leaf = CertificateParams::default();
    leaf.distinguished_name = rcgen::DistinguishedName::new();
    leaf.not_before = at(&room) - DAY;
    leaf.not_after = at(&room) + DAY;
    leaf.is_ca = IsCa::ExplicitNoCa;
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let id = "spiffe://corp.example/doorward/broker";
    leaf.subject_alt_names = vec![rcgen::SanType::URI(id.try_into().unwrap())];
    let leaf = other.below(&rcgen::PKCS_ECDSA_P256_SHA256, leaf);
    let forged = [leaf.der, other.der, root.der.clone()];
    assert!(
        others_take(&forged, std::slice::from_ref(&root.der), room.now()),
        "who trusts the root"
    );
    assert_eq!(room.identity.peer(&forged, room.now()).err(), Some(SvidError::UnknownIssuer));
}

#[tokio::test]
async fn a_revoked_one_that_was_to_sign_is_followed_by_one_below_the_same_company() {
    let room = Room::new().await;
    let (root, issuing) = company(at(&room));
    let (read, there) = reader(&root, &issuing);
    let room = room.below(read);
    let floor =
        EpochFloor { authorities: [room.authority.root_digest()].into(), ..EpochFloor::default() };
    *there.lock().unwrap() = false;
    let failed = room.authority.raise_epochs(&floor).await.unwrap_err().to_string();
    assert!(failed.contains("can't use `up.key`"), "{failed}");
    *there.lock().unwrap() = true;
    assert!(room.authority.raise_epochs(&floor).await.unwrap());
    assert_eq!(room.authority.bundle_document().x509_roots(), [root.der]);
}

#[tokio::test]
async fn a_prepared_one_follows_without_the_companys_key() {
    let room = Room::new().await;
    let (root, issuing) = company(at(&room));
    let (read, there) = reader(&root, &issuing);
    let room = room.below(read);
    step(&room, PREPARE).await.unwrap();
    let floor =
        EpochFloor { authorities: [room.authority.root_digest()].into(), ..EpochFloor::default() };
    *there.lock().unwrap() = false;
    assert!(room.authority.raise_epochs(&floor).await.unwrap());
    assert_eq!(room.authority.bundle_document().x509_roots(), [root.der]);
}

#[tokio::test]
async fn an_authority_of_ours_is_never_published_as_one_above_us() {
    let room = Room::new().await;
    let (root, issuing) = company(at(&room));
    let own = room.authority.bundle_document().x509_roots()[0].clone();
    let (chain, key) = (vec![issuing.der.clone()], issuing.key.serialize_der());
    let both = move || {
        Ok(UpstreamFiles {
            certificates: chain.clone(),
            key: PrivatePkcs8KeyDer::from(key.clone()).into(),
            roots: vec![root.der.clone(), own.clone()],
            life: 90 * DAY,
        })
    };
    let both: ReadUpstream = Arc::new(both);
    let room = room.below(both.clone());
    let living = step(&room, PREPARE).await.unwrap_err();
    assert!(living.hint.unwrap().contains("an authority of this broker's own"));
    // The same once it is revoked: another one signs, and the old root stands in the file only.
    let own = room.authority.root_digest();
    let other = Company::root(&rcgen::PKCS_ECDSA_P256_SHA256, Company::params("Two", at(&room)));
    let below = other.below(&rcgen::PKCS_ECDSA_P256_SHA256, Company::params("It", at(&room)));
    let room = room.below(reader(&other, &below).0);
    step(&room, PREPARE).await.unwrap();
    step(&room, FORCED).await.unwrap();
    step(&room, CaStep::Revoke { id: own, force: true }).await.unwrap();
    let room = room.below(both);
    let revoked = step(&room, PREPARE).await.unwrap_err();
    assert!(revoked.hint.unwrap().contains("or one that was revoked"));
}

#[tokio::test]
async fn an_old_one_that_has_ended_leaves_before_others_do() {
    let room = Room::new().await;
    let (root, issuing) = company(at(&room));
    let mut short = Company::params("Short", at(&room));
    short.not_after = at(&room) + 3 * DAY;
    let ending = root.below(&rcgen::PKCS_ECDSA_P256_SHA256, short);
    let room = room.below(reader(&root, &ending).0);
    step(&room, PREPARE).await.unwrap();
    step(&room, FORCED).await.unwrap();
    let ended = room.authority.root_digest();
    let room = room.below(reader(&root, &issuing).0);
    step(&room, PREPARE).await.unwrap();
    step(&room, FORCED).await.unwrap();
    room.clock.advance(2 * DAY);
    assert_eq!(room.authority.due(room.now()).unwrap(), None);
    room.clock.advance(DAY + Duration::from_secs(1));
    let due = room.authority.due(room.now()).unwrap();
    assert_eq!(due, Some(CaStep::Revoke { id: ended, force: false }));
    step(&room, due.unwrap()).await.unwrap();
    assert_eq!(room.authority.due(room.now()).unwrap(), None, "that of the other waits");
}

#[tokio::test]
async fn no_root_serves_two_purposes() {
    use super::methods::{Admission, EnrolMethods};
    use crate::identity::DeviceRoots;
    use crate::model::{DeviceClass, FederationStep, TrustDomain};
    let room = Room::new().await;
    let (root, issuing) = company(at(&room));
    let (devices, _) = company(at(&room));
    let (partner, _) = company(at(&room));
    let method = |der: &CertificateDer<'static>| {
        let admission = Admission {
            name: "fleet".into(),
            class: DeviceClass::parse("server").unwrap(),
            ttl_s: None,
        };
        let roots = DeviceRoots::read(std::slice::from_ref(der)).unwrap();
        EnrolMethods { x509: vec![(admission, roots)], ..EnrolMethods::default() }
    };
    let add = |of: &Company| {
        let document = crate::identity::BundleDocument::new(
            TrustDomain::parse("b.example").unwrap(),
            vec![of.der.clone()],
            Vec::new(),
            1,
            DAY,
        );
        SecretValue::new(document.unwrap().to_json())
    };
    let federate = async |room: &Room, of: &Company| {
        let trust_domain = TrustDomain::parse("b.example").unwrap();
        let asked = Ask::Federation(FederationStep::Add { trust_domain, endpoint: None });
        let target = room.authority.locate(&asked, &nobody()).await.unwrap();
        room.authority.act(&nobody(), &asked, &target, 7, room.now(), add(of)).await
    };
    let room = Room { authority: room.authority.with_methods(method(&devices.der)), ..room };
    let failure = federate(&room, &devices).await.unwrap_err();
    assert!(failure.hint.unwrap().contains("enrolment method `fleet`"), "a domain's root, later");
    federate(&room, &partner).await.unwrap();
    let key = |of: &Company| Digest::of(&of.key.subject_public_key_info());
    let found = room.authority.root_of_another(&key(&partner));
    assert_eq!(found, Some(TrustDomain::parse("b.example").unwrap()), "at a start");
    assert_eq!(room.authority.root_of_another(&key(&devices)), None);

    // Who stands above our authorities is none of both either.
    let mut room = room.below(reader(&root, &issuing).0);
    for (other, want) in [(&devices, "`fleet`"), (&partner, "b.example")] {
        let below = other.below(&rcgen::PKCS_ECDSA_P256_SHA256, Company::params("It", at(&room)));
        room = room.below(reader(other, &below).0);
        let failure = step(&room, PREPARE).await.unwrap_err();
        assert!(failure.hint.unwrap().contains(want), "{want}");
    }
    room = room.below(reader(&root, &issuing).0);
    step(&room, PREPARE).await.unwrap();
    assert!(room.authority.is_issuer(&key(&root)) && room.authority.is_issuer(&key(&issuing)));
}
