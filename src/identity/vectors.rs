//! Certificate chains with a known answer: good ones, and bad ones that differ from a good one in
//! one point. It leans on nothing but rcgen and this room's public types, so that the same chains
//! can be shown in real handshakes.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use rcgen::{KeyPair, PublicKeyData, SigningKey};
use time::macros::datetime;
use time::{Duration, OffsetDateTime};

use super::draft::{ANY_PURPOSE, CLIENT_AUTH, CODE_SIGNING, DNS, Der, SERVER_AUTH, URI};
pub(crate) use super::draft::{Draft, Signer as Authority, tlv};
use crate::identity::{Bundle, EXTENSION_OID, ExtensionError, SvidError, View};
use crate::model::{Digest, SpiffeIdError, TrustDomain, limits};

pub(crate) const NOW: OffsetDateTime = datetime!(2026-11-23 12:00 UTC);
pub(crate) const OWN: &str = "corp.example";
pub(crate) const PARTNER: &str = "partner.example";
pub(crate) const WORKLOAD: &str = "spiffe://corp.example/ns/pay/sa/api";
const VISITOR: &str = "spiffe://partner.example/ns/web";

pub(crate) fn key() -> KeyPair {
    KeyPair::generate().unwrap()
}

impl Draft {
    /// The leaf that everything here is derived from.
    pub(crate) fn leaf(id: &str) -> Self {
        Self::leaf_at(id, NOW, [0x5a; 16])
    }

    /// A signing certificate.
    pub(crate) fn authority(name: &str, domain: &str) -> Self {
        Self::authority_like(Self::leaf(""), name, domain, NOW + Duration::days(30))
    }

    fn path_length(mut self, most: u8) -> Self {
        self.constraints = Some(tlv(0x30, &[1, 1, 0xff, 2, 1, most]));
        self
    }
}

impl Authority {
    /// SHA-256 of the SubjectPublicKeyInfo.
    pub(crate) fn spki_digest(&self) -> Digest {
        Digest::of(&self.key.subject_public_key_info())
    }
}

/// Two trust domains that know each other.
pub(crate) struct World {
    pub(crate) root: Authority,
    pub(crate) intermediate: Authority,
    /// Roots of our own domain with a flaw of their own.
    pub(crate) rsa_root: Authority,
    pub(crate) ended_root: Authority,
    pub(crate) shallow_root: Authority,
    pub(crate) partner: Authority,
    pub(crate) partner_rsa: Authority,
    pub(crate) partner_p521: Authority,
    /// Of our own domain, and in no bundle; it has our root's name, but not its key.
    pub(crate) impostor: Authority,
}

impl World {
    pub(crate) fn new() -> Self {
        let p256 = &rcgen::PKCS_ECDSA_P256_SHA256;
        let own = |name| Draft::authority(name, OWN);
        let root = Authority::root(&own("own root"), p256);
        let intermediate = root.under(&own("own intermediate").path_length(0));
        let mut ended = own("ended root");
        ended.not_after = NOW - Duration::seconds(1);
        let partner =
            |name, algorithm| Authority::root(&Draft::authority(name, PARTNER), algorithm);
        Self {
            intermediate,
            rsa_root: Authority::root(&own("rsa root"), &rcgen::PKCS_RSA_SHA256),
            ended_root: Authority::root(&ended, p256),
            shallow_root: Authority::root(&own("shallow root").path_length(0), p256),
            partner: partner("partner root", &rcgen::PKCS_ECDSA_P384_SHA384),
            partner_rsa: partner("partner rsa root", &rcgen::PKCS_RSA_SHA256),
            partner_p521: partner("partner p521 root", &rcgen::PKCS_ECDSA_P521_SHA512),
            impostor: Authority::root(&own("own root"), p256),
            root,
        }
    }

    pub(crate) fn own_roots(&self) -> Vec<Der> {
        [&self.root, &self.rsa_root, &self.ended_root, &self.shallow_root]
            .map(|root| root.certificate.clone())
            .to_vec()
    }

    /// Nobody is known in it yet; our issuing keys are those of the root and the intermediate.
    pub(crate) fn view(&self) -> View {
        let partner = [&self.partner, &self.partner_rsa, &self.partner_p521];
        let partner = partner.map(|root| root.certificate.clone()).to_vec();
        let domain = |name| TrustDomain::parse(name).unwrap();
        View {
            trust_domain: domain(OWN),
            bundles: Arc::new(HashMap::from([
                (domain(OWN), Bundle { roots: self.own_roots() }),
                (domain(PARTNER), Bundle { roots: partner }),
            ])),
            own_issuers: Arc::new(HashSet::from([
                self.root.spki_digest(),
                self.intermediate.spki_digest(),
            ])),
            devices: Arc::default(),
            entries: Arc::default(),
            denied: Arc::default(),
        }
    }
}

/// One chain, when it is shown, and what it must be answered with.
pub(crate) struct Vector {
    pub(crate) name: String,
    /// Leaf first.
    pub(crate) chain: Vec<Der>,
    /// The leaf's private key (PKCS#8).
    pub(crate) key: Vec<u8>,
    pub(crate) at: OffsetDateTime,
    pub(crate) want: Result<(), SvidError>,
}

/// All vectors; those that are accepted come first.
pub(crate) fn all(world: &World) -> Vec<Vector> {
    let mut made = Made { world, vectors: Vec::new() };
    good(&mut made);
    bad_chains(&mut made);
    bad_forms(&mut made);
    bad_names(&mut made);
    bad_leaves(&mut made);
    bad_dates(&mut made);
    bad_issuers(&mut made);
    bad_paths(&mut made);
    made.vectors
}

struct Made<'w> {
    world: &'w World,
    vectors: Vec<Vector>,
}

impl Made<'_> {
    fn add(
        &mut self,
        name: &str,
        key: &KeyPair,
        chain: Vec<Der>,
        at: OffsetDateTime,
        want: Result<(), SvidError>,
    ) {
        let (name, key) = (name.to_owned(), key.serialize_der());
        self.vectors.push(Vector { name, chain, key, at, want });
    }

    /// The good leaf, changed.
    fn leaf(&mut self, name: &str, want: Result<(), SvidError>, change: impl FnOnce(&mut Draft)) {
        let (key, mut draft) = (key(), Draft::leaf(WORKLOAD));
        change(&mut draft);
        let leaf = draft.signed_by(&self.world.root, &key);
        self.add(name, &key, vec![leaf], NOW, want);
    }

    /// The good leaf under the good intermediate, whose certificate is changed.
    fn issuer(&mut self, name: &str, want: Result<(), SvidError>, change: impl FnOnce(&mut Draft)) {
        let mut draft = Draft::authority("changed intermediate", OWN);
        change(&mut draft);
        let issuer = self.world.root.under(&draft);
        let key = key();
        let leaf = Draft::leaf(WORKLOAD).signed_by(&issuer, &key);
        self.add(name, &key, vec![leaf, issuer.certificate], NOW, want);
    }

    /// The good leaf with other bytes.
    fn bytes(&mut self, name: &str, want: SvidError, change: impl FnOnce(&mut Vec<u8>)) {
        let key = key();
        let mut der = Draft::leaf(WORKLOAD).signed_by(&self.world.root, &key).to_vec();
        change(&mut der);
        self.add(name, &key, vec![der.into()], NOW, Err(want));
    }

    /// The good leaf with other bytes to be signed, signed again.
    fn resigned(&mut self, name: &str, want: SvidError, change: impl FnOnce(&mut Vec<u8>)) {
        let (key, root) = (key(), &self.world.root);
        let good = Draft::leaf(WORKLOAD).signed_by(root, &key);
        let mut tbs = {
            let (_, parsed) = x509_parser::parse_x509_certificate(&good).unwrap();
            parsed.tbs_certificate.as_ref().to_vec()
        };
        change(&mut tbs);
        let signature = [&[0][..], &SigningKey::sign(&root.key, &tbs).unwrap()].concat();
        let ecdsa_with_sha256 = tlv(0x30, &tlv(0x06, &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2]));
        let der = tlv(0x30, &[tbs, ecdsa_with_sha256, tlv(0x03, &signature)].concat());
        self.add(name, &key, vec![der.into()], NOW, Err(want));
    }

    /// A leaf under any authority, with nothing beside it.
    fn under(&mut self, name: &str, want: Result<(), SvidError>, id: &str, by: &Authority) {
        let key = key();
        let leaf = Draft::leaf(id).signed_by(by, &key);
        self.add(name, &key, vec![leaf], NOW, want);
    }

    /// A leaf shown at a distance from the ends of its life.
    fn shown(&mut self, id: &str, by: &Authority, offset_ns: i64, want: Result<(), SvidError>) {
        let (key, draft) = (key(), Draft::leaf(id));
        let leaf = draft.signed_by(by, &key);
        let offset = Duration::nanoseconds(offset_ns);
        let (end, at) = match offset_ns < 0 {
            true => ("notBefore", draft.not_before + offset),
            false => ("notAfter", draft.not_after + offset),
        };
        let name = format!("{id} at {end} {:+} s", offset.as_seconds_f64());
        self.add(&name, &key, vec![leaf], at, want);
    }
}

fn good(made: &mut Made<'_>) {
    let world = made.world;
    made.leaf("the good leaf", Ok(()), |_| {});
    made.leaf("a DNS name beside the URI", Ok(()), |d| d.names.push((DNS, b"api.corp".to_vec())));
    made.leaf("no extendedKeyUsage", Ok(()), |d| d.purposes = None);
    made.leaf("one purpose more", Ok(()), |d| {
        d.purposes = Some(vec![CODE_SIGNING, CLIENT_AUTH, SERVER_AUTH]);
    });
    made.leaf("a subject, and names that are not critical", Ok(()), |d| {
        (d.subject, d.names_critical) = (Some("api".into()), false);
    });
    made.leaf("keyAgreement beside digitalSignature", Ok(()), |d| {
        d.usage = Some((true, tlv(0x03, &[3, 0x88])));
    });
    made.leaf("an unknown extension that is not critical", Ok(()), |d| {
        d.more.push((vec![1, 2, 3, 4], false, vec![5, 0]));
    });
    made.leaf("a serial number of 20 bytes", Ok(()), |d| d.serial = vec![0x7f; 20]);
    made.issuer("the good intermediate", Ok(()), |_| {});
    made.issuer("an intermediate without URI", Ok(()), |d| d.names.clear());
    made.issuer("an intermediate for both purposes", Ok(()), |d| {
        d.purposes = Some(vec![SERVER_AUTH, CLIENT_AUTH]);
    });
    for algorithm in [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let leaf = Draft::leaf(WORKLOAD).signed_by(&world.root, &key);
        made.add(&format!("a leaf key of {algorithm:?}"), &key, vec![leaf], NOW, Ok(()));
    }
    let key = key();
    let leaf = Draft::leaf(WORKLOAD).signed_by(&world.intermediate, &key);
    let chain = [&world.intermediate, &world.root].map(|issuer| issuer.certificate.clone());
    let chain = [vec![leaf], chain.to_vec()].concat();
    made.add("the root beside the intermediate", &key, chain, NOW, Ok(()));
    // The first way up ends at a root that has ended; the second one counts.
    let cross = Draft::authority("cross-signed", OWN);
    let by_ended = world.ended_root.under(&cross);
    let by_root = cross.signed_by(&world.root, &by_ended.key);
    let leaf = Draft::leaf(WORKLOAD).signed_by(&by_ended, &key);
    let chain = vec![leaf, by_ended.certificate, by_root];
    made.add("two ways up, one of them ended", &key, chain, NOW, Ok(()));
    made.under("a federated leaf", Ok(()), VISITOR, &world.partner);
    made.under("a federated leaf under an RSA root", Ok(()), VISITOR, &world.partner_rsa);
    made.under("a leaf under a root of path length 0", Ok(()), WORKLOAD, &world.shallow_root);
}

fn bad_chains(made: &mut Made<'_>) {
    let world = made.world;
    let (key, beside) = (key(), &world.intermediate.certificate);
    let leaf = Draft::leaf(WORKLOAD).signed_by(&world.intermediate, &key);
    for count in [limits::CHAIN_MAX + 1, 101] {
        let mut chain = vec![beside.clone(); count];
        chain[0] = leaf.clone();
        let want = Err(SvidError::ChainTooLong(count));
        made.add(&format!("{count} certificates"), &key, chain, NOW, want);
    }
    for padding in [limits::CERTIFICATE_MAX, 1 << 20] {
        let mut draft = Draft::leaf(WORKLOAD);
        draft.more.push((vec![1, 2, 3, 4], false, tlv(0x04, &vec![0; padding])));
        let large = draft.signed_by(&world.root, &key);
        let want = || Err(SvidError::CertificateTooLarge(large.len()));
        made.add(
            &format!("a leaf of over {padding} bytes"),
            &key,
            vec![large.clone()],
            NOW,
            want(),
        );
        let chain = vec![leaf.clone(), large.clone()];
        made.add(&format!("over {padding} bytes beside a leaf"), &key, chain, NOW, want());
    }
    let chain = vec![leaf.clone(), beside.clone(), Der::from(vec![0x30, 0])];
    made.add("nonsense beside a good chain", &key, chain, NOW, Err(SvidError::Malformed));
    let chain = vec![leaf.clone(), beside.clone(), leaf];
    let want = Err(SvidError::IssuerNotAuthority);
    made.add("a leaf among the issuers", &key, chain, NOW, want);
}

fn bad_forms(made: &mut Made<'_>) {
    use SvidError as E;
    made.bytes("no bytes", E::Malformed, Vec::clear);
    made.bytes("cut short", E::Malformed, |der| der.truncate(der.len() - 1));
    made.bytes("a byte behind it", E::Malformed, |der| der.push(0));
    made.bytes("text", E::Malformed, |der| *der = b"-----BEGIN CERTIFICATE-----".to_vec());
    made.bytes("a flipped bit in the signature", E::Signature, |der| {
        let last = der.len() - 1;
        der[last] ^= 1;
    });
    // SEQUENCE header of four bytes, [0] { INTEGER 2 }, INTEGER of 16 bytes.
    made.resigned("version 2", E::Version, |tbs| tbs[8] = 1);
    made.resigned("a negative serial number", E::SerialNumber, |tbs| tbs[11] |= 0x80);
    made.leaf("serial number zero", Err(E::SerialNumber), |d| d.serial = vec![0]);
    made.leaf("a serial number of 21 bytes", Err(E::SerialNumber), |d| d.serial = vec![0x7f; 21]);
    made.leaf("keyUsage twice", Err(E::DuplicateExtension), |d| {
        d.more.push((vec![2, 5, 29, 15], true, tlv(0x03, &[7, 0x80])));
    });
    made.leaf("two kinds of alternative names", Err(E::DuplicateExtension), |d| {
        d.more.push((vec![2, 5, 29, 17], false, tlv(0x30, &tlv(URI, WORKLOAD.as_bytes()))));
    });
    made.leaf("an unknown critical extension", Err(E::UnknownCriticalExtension), |d| {
        d.more.push((vec![1, 2, 3, 4], true, vec![5, 0]));
    });
    made.leaf("our extension, critical", Err(E::UnknownCriticalExtension), |d| {
        d.more.push((EXTENSION_OID.to_vec(), true, tlv(0x0c, b"{}")));
    });
    made.leaf("our extension, not readable", Err(E::Extension(ExtensionError)), |d| {
        d.more.push((EXTENSION_OID.to_vec(), false, tlv(0x0c, b"{}")));
    });
    made.leaf("names that are no names", Err(E::MalformedExtension("subjectAltName")), |d| {
        d.names.push((0x0c, b"name".to_vec()));
    });
    made.leaf("keyUsage that is no bits", Err(E::MalformedExtension("keyUsage")), |d| {
        d.usage = Some((true, tlv(0x04, &[7, 0x80])));
    });
    made.leaf("cA of another value", Err(E::MalformedExtension("basicConstraints")), |d| {
        d.constraints = Some(tlv(0x30, &[1, 1, 7]));
    });
    made.leaf("a leaf's path length", Err(E::MalformedExtension("basicConstraints")), |d| {
        d.constraints = Some(tlv(0x30, &[2, 1, 0]));
    });
    made.leaf("no purpose at all", Err(E::MalformedExtension("extendedKeyUsage")), |d| {
        d.purposes = Some(Vec::new());
    });
}

fn bad_names(made: &mut Made<'_>) {
    use SpiffeIdError as I;
    use SvidError as E;
    made.leaf("no alternative names", Err(E::NoUri), |d| d.names.clear());
    made.leaf("a DNS name only", Err(E::NoUri), |d| d.names = vec![(DNS, b"api.corp".to_vec())]);
    made.leaf("two URIs", Err(E::SeveralUris(2)), |d| {
        d.names.push((URI, b"spiffe://corp.example/other".to_vec()));
    });
    made.leaf("the same URI twice", Err(E::SeveralUris(2)), |d| d.names.push(d.names[0].clone()));
    made.leaf("a web address beside the ID", Err(E::SeveralUris(2)), |d| {
        d.names.push((URI, b"https://corp.example".to_vec()));
    });
    made.leaf("the domain's own ID", Err(E::NoPath), |d| {
        d.names = vec![(URI, b"spiffe://corp.example".to_vec())];
    });
    made.leaf("an empty subject and plain names", Err(E::NamesNotCritical), |d| {
        d.names_critical = false;
    });
    let long_path = format!("spiffe://corp.example/{}", "a".repeat(2048));
    let long_domain = format!("spiffe://{}/x", "a".repeat(256));
    for (uri, want) in [
        ("", I::Scheme),
        ("https://corp.example/x", I::Scheme),
        ("Spiffe://corp.example/x", I::Scheme),
        ("spiffe:///x", I::EmptyTrustDomain),
        ("spiffe://Corp.example/x", I::TrustDomainByte('C')),
        ("spiffe://ana@corp.example/x", I::TrustDomainByte('@')),
        ("spiffe://corp.example:443/x", I::TrustDomainByte(':')),
        ("spiffe://corp.example/x/", I::Segment),
        ("spiffe://corp.example//x", I::Segment),
        ("spiffe://corp.example/a/../x", I::Segment),
        ("spiffe://corp.example/%2e%2e/x", I::PathByte('%')),
        ("spiffe://corp.example/x?y", I::PathByte('?')),
        ("spiffe://corp.example/x#y", I::PathByte('#')),
        ("spiffe://corp.example/x\0", I::PathByte('\0')),
        ("spiffe://corp.example/\u{e9}", I::PathByte('\u{e9}')),
        (&long_path, I::TooLong(long_path.len(), 2048)),
        (&long_domain, I::TooLong(256, 255)),
    ] {
        let shown: String = uri.chars().take(40).collect();
        made.leaf(&format!("the URI {shown:?}"), Err(E::SpiffeId(want)), |d| {
            d.names = vec![(URI, uri.as_bytes().to_vec())];
        });
    }
    made.leaf("a URI that is no text", Err(E::SpiffeId(I::Scheme)), |d| {
        d.names = vec![(URI, b"spiffe://corp.example/\xff".to_vec())];
    });
}

fn bad_leaves(made: &mut Made<'_>) {
    use SvidError as E;
    made.leaf("no basicConstraints", Err(E::BasicConstraintsAbsent), |d| d.constraints = None);
    made.leaf("cA=true", Err(E::LeafIsAuthority), |d| {
        d.constraints = Some(tlv(0x30, &[1, 1, 0xff]));
    });
    let usage = |critical, bits: [u8; 2]| Some((critical, tlv(0x03, &bits)));
    for (name, want, usage) in [
        ("no keyUsage", E::KeyUsageAbsent, None),
        ("keyUsage, not critical", E::KeyUsageNotCritical, usage(false, [7, 0x80])),
        ("no digitalSignature", E::NoDigitalSignature, usage(true, [3, 0x08])),
        ("keyUsage without a bit", E::NoDigitalSignature, usage(true, [0, 0])),
        ("keyCertSign", E::LeafSignsCertificates, usage(true, [2, 0x84])),
        ("cRLSign", E::LeafSignsRevocations, usage(true, [1, 0x82])),
        ("keyCertSign and cRLSign", E::LeafSignsCertificates, usage(true, [1, 0x86])),
    ] {
        made.leaf(name, Err(want), |d| d.usage = usage);
    }
    for (name, purposes) in [
        ("serverAuth only", vec![SERVER_AUTH]),
        ("clientAuth only", vec![CLIENT_AUTH]),
        ("any purpose", vec![ANY_PURPOSE]),
        ("any purpose beside clientAuth", vec![ANY_PURPOSE, CLIENT_AUTH]),
        ("codeSigning only", vec![CODE_SIGNING]),
    ] {
        made.leaf(name, Err(E::ExtendedKeyUsage), |d| d.purposes = Some(purposes));
    }
    for algorithm in [&rcgen::PKCS_RSA_SHA256, &rcgen::PKCS_ECDSA_P521_SHA512] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let leaf = Draft::leaf(WORKLOAD).signed_by(&made.world.root, &key);
        let name = format!("a leaf key of {algorithm:?}");
        made.add(&name, &key, vec![leaf], NOW, Err(E::KeyKind));
    }
    let (key, intermediate) = (key(), &made.world.intermediate);
    let chain = vec![intermediate.certificate.clone()];
    made.add("an intermediate as a leaf", &key, chain, NOW, Err(E::LeafIsAuthority));
}

fn bad_dates(made: &mut Made<'_>) {
    const SECOND: i64 = 1_000_000_000;
    let world = made.world;
    for (offset, want) in [
        (0, Ok(())),
        (1, Err(SvidError::Expired)),
        (SECOND, Err(SvidError::Expired)),
        (60 * SECOND, Err(SvidError::Expired)),
        (300 * SECOND, Err(SvidError::Expired)),
        (-1, Err(SvidError::NotYet)),
        (-SECOND, Err(SvidError::NotYet)),
        (-60 * SECOND, Err(SvidError::NotYet)),
        (-300 * SECOND, Err(SvidError::NotYet)),
    ] {
        made.shown(WORKLOAD, &world.root, offset, want);
    }
    for (offset, want) in [
        (SECOND, Ok(())),
        (59 * SECOND, Ok(())),
        (60 * SECOND, Ok(())),
        (60 * SECOND + 1, Err(SvidError::Expired)),
        (300 * SECOND, Err(SvidError::Expired)),
        (-SECOND, Err(SvidError::IssuerNotYet)), // its root began in the same second
        (-60 * SECOND - 1, Err(SvidError::NotYet)),
        (-300 * SECOND, Err(SvidError::NotYet)),
    ] {
        made.shown(VISITOR, &world.partner, offset, want);
    }
    // Begun an hour after its root did, so that only the leaf is early.
    let (key, mut draft) = (key(), Draft::leaf(VISITOR));
    draft.not_before = NOW + Duration::minutes(30);
    let leaf = draft.signed_by(&world.partner, &key);
    for (early, want) in [(60 * SECOND, Ok(())), (60 * SECOND + 1, Err(SvidError::NotYet))] {
        let at = draft.not_before - Duration::nanoseconds(early);
        made.add(&format!("a visitor {early} ns early"), &key, vec![leaf.clone()], at, want);
    }
}

fn bad_issuers(made: &mut Made<'_>) {
    use SvidError as E;
    let uri = |text: &str| vec![(URI, text.as_bytes().to_vec())];
    let constraint = |base: Vec<u8>| tlv(0x30, &tlv(0xa0, &tlv(0x30, &base)));
    made.issuer("an intermediate with cA=false", Err(E::IssuerNotAuthority), |d| {
        d.constraints = Some(tlv(0x30, &[]));
    });
    made.issuer("an intermediate without constraints", Err(E::IssuerNotAuthority), |d| {
        d.constraints = None;
    });
    made.issuer("an intermediate without keyCertSign", Err(E::IssuerSignsNoCertificates), |d| {
        d.usage = Some((true, tlv(0x03, &[1, 0x02])));
    });
    made.issuer("an intermediate without keyUsage", Err(E::IssuerSignsNoCertificates), |d| {
        d.usage = None;
    });
    made.issuer("an intermediate's ID with a path", Err(E::IssuerName), |d| {
        d.names = uri("spiffe://corp.example/ca");
    });
    made.issuer("an intermediate's web address", Err(E::IssuerName), |d| {
        d.names = uri("https://corp.example");
    });
    made.issuer("an intermediate with two IDs", Err(E::IssuerName), |d| {
        d.names.push((URI, b"spiffe://partner.example".to_vec()));
    });
    made.issuer("an intermediate of another domain", Err(E::IssuerDomain), |d| {
        d.names = uri("spiffe://partner.example");
    });
    for (name, base) in [
        ("a URI constraint that fits", tlv(URI, b"corp.example")),
        ("a URI constraint that does not", tlv(URI, b"partner.example")),
        ("a DNS constraint", tlv(DNS, b"corp.example")),
    ] {
        made.issuer(name, Err(E::NameConstraints), |d| {
            d.more.push((vec![2, 5, 29, 30], true, constraint(base)));
        });
    }
    made.issuer("an intermediate for servers only", Err(E::IssuerPurpose), |d| {
        d.purposes = Some(vec![SERVER_AUTH]);
    });
    made.issuer("an intermediate for any purpose", Err(E::IssuerPurpose), |d| {
        d.purposes = Some(vec![ANY_PURPOSE]);
    });
    made.issuer("an unknown critical extension above", Err(E::UnknownCriticalExtension), |d| {
        d.more.push((vec![1, 2, 3, 4], true, vec![5, 0]));
    });
    made.issuer("an intermediate that has ended", Err(E::IssuerExpired), |d| {
        d.not_after = NOW - Duration::seconds(1);
    });
    made.issuer("an intermediate that has not begun", Err(E::IssuerNotYet), |d| {
        d.not_before = NOW + Duration::seconds(1);
    });
}

fn bad_paths(made: &mut Made<'_>) {
    use SvidError as E;
    let world = made.world;
    let own = |name| Draft::authority(name, OWN);
    made.under("signed by a federated root", Err(E::UnknownIssuer), WORKLOAD, &world.partner);
    made.under("a visitor signed by our root", Err(E::UnknownIssuer), VISITOR, &world.root);
    made.under("a root of the same name", Err(E::Signature), WORKLOAD, &world.impostor);
    let stranger = "spiffe://stranger.example/x";
    made.under("an unknown domain", Err(E::UnknownTrustDomain), stranger, &world.root);
    made.under("without its intermediate", Err(E::UnknownIssuer), WORKLOAD, &world.intermediate);
    made.under("an RSA root of our own", Err(E::Algorithm), WORKLOAD, &world.rsa_root);
    made.under("a root that has ended", Err(E::IssuerExpired), WORKLOAD, &world.ended_root);
    made.under("a P-521 root", Err(E::Algorithm), VISITOR, &world.partner_p521);
    let key = key();
    let alone = Draft::leaf(WORKLOAD).self_signed(&key);
    made.add("self-signed", &key, vec![alone], NOW, Err(E::UnknownIssuer));

    let chain_under = |authorities: &[&Authority]| {
        let leaf = Draft::leaf(WORKLOAD).signed_by(authorities[0], &key);
        let beside = authorities.iter().map(|authority| authority.certificate.clone());
        std::iter::once(leaf).chain(beside).collect::<Vec<_>>()
    };
    let deep = world.intermediate.under(&own("too deep"));
    let chain = chain_under(&[&deep, &world.intermediate]);
    made.add("deeper than an intermediate allows", &key, chain, NOW, Err(E::PathLength));
    let below = world.shallow_root.under(&own("below the shallow root"));
    let chain = chain_under(&[&below]);
    made.add("deeper than a root allows", &key, chain, NOW, Err(E::PathLength));
    let foreign = world.impostor.under(&own("foreign intermediate"));
    let chain = chain_under(&[&foreign, &world.impostor]);
    made.add("a whole chain of strangers", &key, chain, NOW, Err(E::Signature));

    let (one, other) = (own("loop a"), own("loop b"));
    let mut a = Authority::root(&one, &rcgen::PKCS_ECDSA_P256_SHA256);
    let b = a.under(&other);
    a.certificate = one.signed_by(&b, &a.key);
    let chain = chain_under(&[&a, &b]);
    made.add("authorities that sign each other", &key, chain, NOW, Err(E::UnknownIssuer));

    let agent = Authority::root(&Draft::leaf(WORKLOAD), &rcgen::PKCS_ECDSA_P256_SHA256);
    let mut draft = Draft::leaf(WORKLOAD);
    draft.subject = Some("a leaf that signs".into());
    let signer = Authority {
        certificate: draft.signed_by(&world.root, &agent.key),
        params: draft.params(),
        key: agent.key,
    };
    let chain = chain_under(&[&signer]);
    made.add("signed by a leaf", &key, chain, NOW, Err(E::IssuerNotAuthority));
}
