//! The command line as a workload of another trust domain: with the SVID of its own issuer and the
//! roots of the broker that it asks. Domains are never mixed.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use doorward::app::Ran;
use doorward::wire::Credentials;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;

use super::federation::{A, B, C, Domain, root, with_secrets};
use super::forge::Signer;
use super::granted::{of_op, records};

const ID: &str = "spiffe://b.example/ns/pay";

fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

struct Scene {
    a: Domain,
    b: Domain,
    place: tempfile::TempDir,
}

impl Scene {
    /// What an issuer's helper and an operator put into a directory.
    fn dir(&self, name: &str, of: &Credentials, meta: &[(&str, &str)]) -> PathBuf {
        let dir = self.place.path().join(name);
        std::fs::create_dir(&dir).unwrap();
        std::fs::set_permissions(&dir, Permissions::from_mode(0o700)).unwrap();
        let mut all = serde_json::json!({ "format": 1, "broker": self.a.operator.broker });
        for (name, value) in meta {
            all[*name] = (*value).into();
        }
        let PrivateKeyDer::Pkcs8(key) = &of.key else { panic!("another form of key") };
        let certificates = |all: &[CertificateDer<'_>]| {
            all.iter().map(|one| pem("CERTIFICATE", one)).collect::<String>()
        };
        for (file, text) in [
            ("svid.pem", certificates(&of.chain)),
            ("bundle.pem", certificates(&of.bundle)),
            ("key.pem", pem("PRIVATE KEY", key.secret_pkcs8_der())),
            ("doorward.json", all.to_string()),
        ] {
            std::fs::write(dir.join(file), text).unwrap();
            std::fs::set_permissions(dir.join(file), Permissions::from_mode(0o600)).unwrap();
        }
        dir
    }

    fn ask(&self, dir: &Path, args: &[&str]) -> Ran {
        let dir = dir.display().to_string();
        self.a.stage.run(&[&["--identity", &dir], args].concat(), None).unwrap()
    }

    fn visitor(&self, id: &str, by: &Signer) -> Credentials {
        self.a.visitor(id, by)
    }
}

#[test]
fn a_federated_workload_gets_its_secret_by_the_command_line_and_nothing_else() {
    let place = tempfile::tempdir().unwrap();
    let scene = Scene { a: Domain::new(A, ""), b: Domain::new(B, ""), place };
    let (a, by_b, c) = (&scene.a, scene.b.signer(), root(C));
    with_secrets(a);
    a.must(&["federation", "add", B, "--bundle", "-"], Some(&scene.b.bundle()));
    let names = |own: &'static str| [("trust_domain", own), ("broker_trust_domain", A)];

    let from_b = scene.visitor(ID, &by_b);
    let dir = scene.dir("b", &from_b, &names(B));
    let before = contents(&dir);
    let got = scene.ask(&dir, &["get", "b/url"]);
    assert_eq!((got.code, &got.json()["value"]), (0, &"for b".into()), "{got:?}");
    assert_eq!(scene.ask(&dir, &["whoami"]).json()["spiffe_id"], ID);
    for forbidden in
        [&["get", "c/url"][..], &["list", "b"], &["entry", "list"], &["policy", "show"]]
    {
        let refused = scene.ask(&dir, forbidden);
        assert_eq!(refused.code, 3, "{forbidden:?}: {refused:?}");
    }
    assert_eq!(contents(&dir), before, "nothing is renewed or written there");
    let (records, of_b) = (records(&a.stage), |it: &&Value| it.to_string().contains(ID));
    assert!(records.iter().any(|it| of_b(&it)), "it is told in the log");
    assert!(!of_op(&records, "renew").iter().any(of_b), "another domain renews it");

    // The broker's domain is not named; another one is; or the SVID's own is not what is said.
    for (name, meta) in [
        ("unnamed", &[("trust_domain", B)][..]),
        ("as-a", &[("trust_domain", A)]),
        ("swapped", &[("trust_domain", A), ("broker_trust_domain", B)]),
        ("as-c", &names(C)),
        ("of-c", &[("trust_domain", B), ("broker_trust_domain", C)]),
    ] {
        let refused = scene.ask(&scene.dir(name, &from_b, meta), &["get", "b/url"]);
        assert_ne!(refused.code, 0, "{name}: {refused:?}");
        assert!(!refused.stdout.contains("for b"), "{name}: {refused:?}");
    }
    // Another broker's roots: it is not believed, although the SVID's own domain is right.
    let misled = with_roots(&from_b, scene.b.operator.bundle.clone());
    let refused = scene.ask(&scene.dir("roots", &misled, &names(B)), &["get", "b/url"]);
    assert!(refused.fault().to_string().contains("bundle.pem holds a root of"), "{refused:?}");
    // Both brokers' roots together are no better.
    let both = [&a.operator.bundle[..], &scene.b.operator.bundle[..]].concat();
    let pooled = with_roots(&from_b, both);
    let refused = scene.ask(&scene.dir("both", &pooled, &names(B)), &["get", "b/url"]);
    assert_ne!(refused.code, 0, "{refused:?}");

    // A domain that nobody federates with, and one key under another domain's name.
    let strangers = scene.visitor("spiffe://c.example/ns/pay", &c);
    let refused = scene.ask(&scene.dir("c", &strangers, &names(C)), &["get", "c/url"]);
    assert!(refused.code != 0 && refused.stdout.is_empty(), "{refused:?}");
    let forged = scene.visitor(ID, &c);
    let refused = scene.ask(&scene.dir("forged", &forged, &names(B)), &["get", "b/url"]);
    assert!(refused.code != 0 && refused.stdout.is_empty(), "{refused:?}");

    // And its end.
    a.must(&["federation", "remove", B], None);
    assert_ne!(scene.ask(&dir, &["get", "b/url"]).code, 0);
}

fn with_roots(of: &Credentials, bundle: Vec<CertificateDer<'static>>) -> Credentials {
    Credentials {
        domain: of.domain.clone(),
        broker: of.broker.clone(),
        chain: of.chain.clone(),
        key: of.key.clone_key(),
        bundle,
    }
}

fn contents(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let files = std::fs::read_dir(dir).unwrap().map(|file| file.unwrap());
    let mut all: Vec<_> = files
        .map(|file| (file.file_name().into_string().unwrap(), std::fs::read(file.path()).unwrap()))
        .collect();
    all.sort();
    all
}
