//! Certificates of endorsement keys: whose TPM it is, as its maker says.
//!
//! The chain is verified by webpki under the roots of one method only. Purpose is looked at here:
//! the extended usage of an endorsement certificate (TCG EK Credential Profile §3.2.16) stands in
//! the leaf alone, so that it can't be demanded of its issuers. Nothing else in a certificate is
//! believed.

use std::time::Duration;

use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::aws_lc_rs as algorithms;
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::public::Public;
use crate::model::limits::{EK_CERTIFICATE_MAX, EK_ISSUERS_MAX, ROOTS_MAX};
use crate::model::{Digest, Moment};

/// tcg-kp-EKCertificate, 2.23.133.8.1, as DER has it.
const EK_PURPOSE: &[u8] = &[0x67, 0x81, 0x05, 0x08, 0x01];

/// What makers of TPMs sign with; nothing with SHA-1.
const ALGORITHMS: &[&dyn rustls::pki_types::SignatureVerificationAlgorithm] = &[
    algorithms::ECDSA_P256_SHA256,
    algorithms::ECDSA_P256_SHA384,
    algorithms::ECDSA_P384_SHA256,
    algorithms::ECDSA_P384_SHA384,
    algorithms::ECDSA_P521_SHA256,
    algorithms::ECDSA_P521_SHA384,
    algorithms::ECDSA_P521_SHA512,
    algorithms::RSA_PKCS1_2048_8192_SHA256,
    algorithms::RSA_PKCS1_2048_8192_SHA384,
    algorithms::RSA_PKCS1_2048_8192_SHA512,
    algorithms::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
    algorithms::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
    algorithms::RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
];

/// Why a certificate says nothing of an endorsement key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EkError {
    /// None was shown.
    #[error("there is no certificate of the endorsement key")]
    Missing,
    /// More, or larger ones, than there ever are.
    #[error("there are more than {EK_ISSUERS_MAX} issuers, or a certificate is too large")]
    TooLarge,
    /// It can't be read.
    #[error("a certificate of the endorsement key can't be read")]
    Form,
    /// It is of another key.
    #[error("the certificate is of another endorsement key")]
    KeyOfAnother,
    /// It is for something else.
    #[error("the certificate is not one of an endorsement key")]
    Purpose,
    /// No way to a root of the method, now.
    #[error("the certificate's chain ends at none of the roots, or does not hold now")]
    Chain,
}

/// Why a file of roots is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EkRootsError {
    /// None, or too many.
    #[error("it has no certificate, or more than {ROOTS_MAX}")]
    Count,
    /// One is not an authority's certificate.
    #[error("its certificate {0} is not an authority's")]
    NotAuthority(usize),
}

/// Roots under which endorsement certificates are taken.
#[derive(Debug, Clone)]
pub struct EkRoots(Vec<Root>);

#[derive(Debug, Clone)]
struct Root {
    anchor: TrustAnchor<'static>,
    /// SHA-256 of the SubjectPublicKeyInfo.
    key: Digest,
    /// Seconds since 1970.
    life: std::ops::RangeInclusive<i64>,
}

impl EkRoots {
    /// Reads them. A root that has ended is taken, and judged at each proof.
    ///
    /// # Errors
    /// The first that can't be a root.
    pub fn read(certificates: &[CertificateDer<'_>]) -> Result<Self, EkRootsError> {
        if !(1..=ROOTS_MAX).contains(&certificates.len()) {
            return Err(EkRootsError::Count);
        }
        let read = |(at, der): (usize, &CertificateDer<'_>)| {
            let wrong = EkRootsError::NotAuthority(at.saturating_add(1));
            let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| wrong)?;
            if !rest.is_empty() || !certificate.is_ca() {
                return Err(wrong);
            }
            let validity = certificate.validity();
            Ok(Root {
                anchor: webpki::anchor_from_trusted_cert(der).map_err(|_| wrong)?.to_owned(),
                key: Digest::of(certificate.public_key().raw),
                life: validity.not_before.timestamp()..=validity.not_after.timestamp(),
            })
        };
        certificates.iter().enumerate().map(read).collect::<Result<_, _>>().map(Self)
    }

    /// SHA-256 of their SubjectPublicKeyInfos.
    pub fn keys(&self) -> impl Iterator<Item = &Digest> {
        self.0.iter().map(|root| &root.key)
    }

    /// That the first certificate is of this endorsement key, made by one of these roots' TPM
    /// makers; the others are its issuers, in any order.
    ///
    /// # Errors
    /// The first thing that does not hold.
    pub fn verify(
        &self,
        ek: &Public,
        certificates: &[CertificateDer<'_>],
        now: Moment,
    ) -> Result<(), EkError> {
        let (leaf, issuers) = certificates.split_first().ok_or(EkError::Missing)?;
        let is_large = |der: &CertificateDer<'_>| der.len() > EK_CERTIFICATE_MAX;
        if issuers.len() > EK_ISSUERS_MAX || certificates.iter().any(is_large) {
            return Err(EkError::TooLarge);
        }
        check_leaf(leaf, ek)?;
        let now = now.unix_s();
        let living = self.0.iter().filter(|root| root.life.contains(&now));
        let anchors: Vec<_> = living.map(|root| root.anchor.clone()).collect();
        let seconds = u64::try_from(now).map_err(|_| EkError::Chain)?;
        EndEntityCert::try_from(leaf)
            .map_err(|_| EkError::Form)?
            .verify_for_usage(
                ALGORITHMS,
                &anchors,
                issuers,
                UnixTime::since_unix_epoch(Duration::from_secs(seconds)),
                KeyUsage::required_if_present(EK_PURPOSE),
                None,
                None,
            )
            .map(drop)
            .map_err(|_| EkError::Chain)
    }
}

/// Key, purpose and place of the leaf.
fn check_leaf(leaf: &[u8], ek: &Public) -> Result<(), EkError> {
    let (rest, certificate) = X509Certificate::from_der(leaf).map_err(|_| EkError::Form)?;
    if !rest.is_empty() {
        return Err(EkError::Form);
    }
    if certificate.public_key().raw != ek.spki() {
        return Err(EkError::KeyOfAnother);
    }
    if certificate.is_ca() {
        return Err(EkError::Purpose);
    }
    let purposes = certificate.extended_key_usage().map_err(|_| EkError::Form)?;
    let purposes = purposes.ok_or(EkError::Purpose)?;
    match purposes.value.other.iter().any(|oid| oid.as_bytes() == EK_PURPOSE) {
        true => Ok(()),
        false => Err(EkError::Purpose),
    }
}

#[cfg(test)]
mod tests {
    use super::super::vectors::vector;
    use super::*;
    use rcgen::{
        BasicConstraints, CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, IsCa,
        Issuer, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm,
    };
    use time::macros::datetime;

    fn at(wall: time::OffsetDateTime) -> Moment {
        Moment::new(wall, Duration::from_secs(1))
    }

    fn now() -> Moment {
        at(datetime!(2026-11-24 00:00 UTC))
    }

    fn der(name: &str) -> CertificateDer<'static> {
        CertificateDer::from(vector(name))
    }

    fn ek(name: &str) -> Public {
        Public::parse(&vector(name)).unwrap()
    }

    fn chain(name: &str) -> Vec<CertificateDer<'static>> {
        vec![der(&format!("{name}_certificate")), der("issuer_certificate")]
    }

    #[test]
    fn certificates_that_swtpm_localca_made_hold_under_their_root_only() {
        let roots = EkRoots::read(&[der("root_certificate")]).unwrap();
        for name in ["ek_p384", "ek_rsa2048"] {
            roots.verify(&ek(name), &chain(name), now()).unwrap();
            let alone = [chain(name).remove(0)];
            assert_eq!(roots.verify(&ek(name), &alone, now()), Err(EkError::Chain));
        }
        let verify = |name, chain: &[CertificateDer<'_>], now| roots.verify(&ek(name), chain, now);
        assert_eq!(verify("ek_p384", &[], now()), Err(EkError::Missing));
        assert_eq!(verify("ek_p384", &chain("ek_rsa2048"), now()), Err(EkError::KeyOfAnother));
        assert_eq!(verify("ek_p256", &chain("ek_p384"), now()), Err(EkError::KeyOfAnother));
        let before = at(datetime!(2026-11-22 00:00 UTC));
        assert_eq!(verify("ek_p384", &chain("ek_p384"), before), Err(EkError::Chain));
        let mut long = chain("ek_p384");
        long.extend(std::iter::repeat_n(der("issuer_certificate"), EK_ISSUERS_MAX));
        assert_eq!(verify("ek_p384", &long, now()), Err(EkError::TooLarge));
        let mut broken = chain("ek_p384");
        broken[0] = CertificateDer::from([&vector("ek_p384_certificate")[..], &[0]].concat());
        assert_eq!(verify("ek_p384", &broken, now()), Err(EkError::Form));
        let (other, _) = authority("another maker");
        let strangers = EkRoots::read(&[other]).unwrap();
        let shown = strangers.verify(&ek("ek_p384"), &chain("ek_p384"), now());
        assert_eq!(shown, Err(EkError::Chain));
        assert_eq!(EkRoots::read(&[]).unwrap_err(), EkRootsError::Count);
        let leaf = EkRoots::read(&[der("ek_p384_certificate")]).unwrap_err();
        assert_eq!(leaf, EkRootsError::NotAuthority(1));
    }

    fn authority(name: &str) -> (CertificateDer<'static>, Issuer<'static, KeyPair>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let der = params.self_signed(&key).unwrap().der().clone();
        (der, Issuer::new(params, key))
    }

    /// A key that is nothing but the point of an endorsement key.
    struct Point(Vec<u8>);

    impl PublicKeyData for Point {
        fn der_bytes(&self) -> &[u8] {
            &self.0
        }

        fn algorithm(&self) -> &'static SignatureAlgorithm {
            &PKCS_ECDSA_P256_SHA256
        }
    }

    #[test]
    fn a_certificate_for_something_else_is_none() {
        let (root, issuer) = authority("a maker");
        let roots = EkRoots::read(&[root]).unwrap();
        let public = ek("ek_p256");
        let point = Point(public.spki()[26..].to_vec());
        let purpose = || ExtendedKeyUsagePurpose::Other(vec![2, 23, 133, 8, 1]);
        let verify = |change: &dyn Fn(&mut CertificateParams)| {
            let mut params = CertificateParams::default();
            params.extended_key_usages = vec![purpose()];
            params.is_ca = IsCa::ExplicitNoCa;
            change(&mut params);
            let leaf = params.signed_by(&point, &issuer).unwrap();
            roots.verify(&public, &[leaf.der().clone()], now())
        };
        assert_eq!(verify(&|_| {}), Ok(()), "control");
        assert_eq!(verify(&|params| params.extended_key_usages.clear()), Err(EkError::Purpose));
        let other = |params: &mut CertificateParams| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        };
        assert_eq!(verify(&other), Err(EkError::Purpose));
        let ca = |params: &mut CertificateParams| {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        };
        assert_eq!(verify(&ca), Err(EkError::Purpose));
        let critical = |params: &mut CertificateParams| {
            let mut it = CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
            it.set_criticality(true);
            params.custom_extensions.push(it);
        };
        assert_eq!(verify(&critical), Err(EkError::Form), "nobody knows what it forbids");
    }
}
